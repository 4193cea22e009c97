//! The gateway's own HTTP endpoints, as one table.
//!
//! Routing, the methods of a 405, request bodies, the warning about routes that an endpoint hides,
//! and the test that compares the documents with the program all read [`ENDPOINTS`]. To add an
//! endpoint, add a row and a variant of [`Answer`]; the compiler then asks the gateway for what
//! answers it, and `tests/documented.rs` for its row in `docs/protocol.md`.

use crate::service::limits::Pages;

/// The error for a client that is no admin, from an endpoint for admins.
pub const ADMINS_ONLY: &str = "this is for admins only: ask from an address in admin_from (by default \
     from this machine, not through a proxy), by IP address, localhost or a name in server_names";

/// One endpoint.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields explain themselves")]
pub struct Endpoint {
    /// The path. `{name}` matches one whole, non-empty segment. Only names follow the first one.
    pub path: &'static str,
    /// Any other method is answered with 405 and these in `Allow`.
    pub methods: &'static [&'static str],
    /// Who gets an answer. Some answers to everyone have less in them than those to admins.
    pub audience: Audience,
    /// Which web pages may read the answer.
    pub pages: Pages,
    /// The largest request body that is taken, in bytes; a larger one is answered with 413.
    pub body_bytes_max: u64,
    /// Whether it is also answered on a connection beyond `max_connections`.
    pub is_answered_when_full: bool,
    pub answer: Answer,
    /// What the endpoint is for, in one line.
    pub doc: &'static str,
}

/// Who may use an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// Every client that can connect.
    Everyone,
    /// Admins; others get 403.
    Admins,
}

/// What answers an endpoint; `gateway/snapshot.rs` has the code for each, `session/download.rs`
/// that for audio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Answer {
    Page,
    Client,
    Health,
    Ready,
    Connections,
    Closed,
    Events,
    Frames,
    Status,
    Metrics,
    Stop,
    Audio,
}

/// Browsers ask by OPTIONS whether a page of another origin may send the request.
const ACT: &[&str] = &["POST", "OPTIONS"];

/// HEAD is answered wherever GET is (RFC 9110 §9.3.2).
const READ: &[&str] = &["GET", "HEAD"];

/// For what scripts on pages of any origin fetch, with headers that need a preflight.
const FETCH: &[&str] = &["GET", "HEAD", "OPTIONS"];

/// Every endpoint of the gateway.
pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        path: "/",
        methods: READ,
        audience: Audience::Everyone,
        pages: Pages::Allowed,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Page,
        doc: "the status page",
    },
    Endpoint {
        path: "/gateway",
        methods: READ,
        audience: Audience::Everyone,
        pages: Pages::Allowed,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Page,
        doc: "the same page",
    },
    Endpoint {
        path: "/health",
        methods: READ,
        audience: Audience::Everyone,
        pages: Pages::Any,
        body_bytes_max: 0,
        is_answered_when_full: true,
        answer: Answer::Health,
        doc: "whether backends and Redis can be reached; always 200",
    },
    Endpoint {
        path: "/ready",
        methods: READ,
        audience: Audience::Everyone,
        pages: Pages::Any,
        body_bytes_max: 0,
        is_answered_when_full: true,
        answer: Answer::Ready,
        doc: "whether new clients should be sent here: 200 or 503",
    },
    Endpoint {
        path: "/connections",
        methods: READ,
        audience: Audience::Everyone,
        pages: Pages::Allowed,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Connections,
        doc: "every open WebSocket",
    },
    Endpoint {
        path: "/connections/closed",
        methods: READ,
        audience: Audience::Admins,
        pages: Pages::Allowed,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Closed,
        doc: "the last connections that ended, and why",
    },
    Endpoint {
        path: "/events",
        methods: READ,
        audience: Audience::Admins,
        pages: Pages::Allowed,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Events,
        doc: "a snapshot of the gateway every second, as Server-Sent Events",
    },
    Endpoint {
        path: "/events/frames",
        methods: READ,
        audience: Audience::Admins,
        pages: Pages::Allowed,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Frames,
        doc: "live frames of connections, as Server-Sent Events",
    },
    Endpoint {
        path: "/status/{task_id}",
        methods: READ,
        audience: Audience::Everyone,
        pages: Pages::Any,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Status,
        doc: "the state of one task",
    },
    Endpoint {
        path: "/control/stop",
        methods: ACT,
        audience: Audience::Everyone,
        pages: Pages::Any,
        body_bytes_max: 64 * 1024,
        is_answered_when_full: false,
        answer: Answer::Stop,
        doc: "POST: stop a task",
    },
    Endpoint {
        path: "/audio/{task_id}",
        methods: FETCH,
        audience: Audience::Everyone,
        pages: Pages::Any,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Audio,
        doc: "the first audio that is kept for a task",
    },
    Endpoint {
        path: "/audio/{task_id}/{result_id}",
        methods: FETCH,
        audience: Audience::Everyone,
        pages: Pages::Any,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Audio,
        doc: "the audio of one result",
    },
    Endpoint {
        path: "/metrics",
        methods: READ,
        audience: Audience::Admins,
        pages: Pages::Allowed,
        body_bytes_max: 0,
        is_answered_when_full: true,
        answer: Answer::Metrics,
        doc: "counters and gauges for Prometheus",
    },
    Endpoint {
        path: "/client.js",
        methods: FETCH,
        audience: Audience::Everyone,
        pages: Pages::Everywhere,
        body_bytes_max: 0,
        is_answered_when_full: false,
        answer: Answer::Client,
        doc: "the front-end library, an ES module",
    },
];

impl Endpoint {
    /// The endpoint at `path` (without its query), and the segments that its names matched, as the
    /// client wrote them; `""` where it has no name.
    pub fn find(path: &str) -> Option<(&'static Endpoint, &str)> {
        // Every request is looked for here, and most paths are those of routes. No first segment is
        // a name, so that its first character tells most of them apart.
        let begins =
            |endpoint: &&Endpoint| path.as_bytes().get(1) == endpoint.path.as_bytes().get(1);
        let mut candidates = ENDPOINTS.iter().filter(begins);
        candidates.find_map(|endpoint| Some((endpoint, endpoint.match_path(path)?)))
    }

    fn match_path<'p>(&self, path: &'p str) -> Option<&'p str> {
        let Some((before, names)) = self.path.split_once('{') else {
            return (path == self.path).then_some("");
        };
        path.strip_prefix(before).filter(|value| {
            value.split('/').count() == names.split('/').count()
                && value.split('/').all(|segment| !segment.is_empty())
        })
    }

    /// Whether a request with this method gets an answer other than 405.
    pub fn takes_method(&self, method: &str) -> bool {
        self.methods.contains(&method)
    }

    /// The value of the `Allow` header.
    pub fn allow(&self) -> String {
        self.methods.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::url::Template;

    #[test]
    fn endpoints_are_found_by_exact_path() {
        for (path, found) in [
            ("/", Some((Answer::Page, ""))),
            ("/health", Some((Answer::Health, ""))),
            ("/ready", Some((Answer::Ready, ""))),
            ("/connections", Some((Answer::Connections, ""))),
            ("/connections/closed", Some((Answer::Closed, ""))),
            ("/gateway", Some((Answer::Page, ""))),
            ("/events", Some((Answer::Events, ""))),
            ("/events/frames", Some((Answer::Frames, ""))),
            ("/events/", None),
            ("/metrics", Some((Answer::Metrics, ""))),
            ("/status/a%20b", Some((Answer::Status, "a%20b"))),
            ("/status/", None),
            ("/status", None),
            ("/status/a/b", None),
            ("/audio/a", Some((Answer::Audio, "a"))),
            ("/audio/a/1", Some((Answer::Audio, "a/1"))),
            ("/audio/", None),
            ("/audio/a/", None),
            ("/audio//1", None),
            ("/audio/a/1/2", None),
            ("/health/", None),
            ("/Health", None),
            ("", None),
        ] {
            let answer = Endpoint::find(path).map(|(endpoint, value)| (endpoint.answer, value));
            assert_eq!(answer, found, "{path}");
        }
    }

    /// `route::shadowed` compares routes with these paths as templates, so both must agree on what
    /// a path matches.
    #[test]
    fn every_path_is_a_template_that_matches_the_same_paths() {
        for endpoint in ENDPOINTS {
            let template = Template::parse(endpoint.path).expect("endpoint paths are well formed");
            for path in [
                "/",
                "/health",
                "/status/a",
                "/status/",
                "/status/a/b",
                "/metrics",
                "/x",
                "/audio/a",
                "/audio/a/b",
                "/audio/a/",
                "/audio/a/b/c",
            ] {
                assert_eq!(
                    endpoint.match_path(path).is_some(),
                    template.match_path(path).is_some(),
                    "{path} at {}",
                    endpoint.path
                );
            }
        }
    }

    #[test]
    fn no_first_segment_is_a_name() {
        assert!(ENDPOINTS.iter().all(|endpoint| !endpoint.path.starts_with("/{")));
    }

    #[test]
    fn head_is_answered_wherever_get_is() {
        for endpoint in ENDPOINTS {
            assert_eq!(
                endpoint.takes_method("GET"),
                endpoint.takes_method("HEAD"),
                "{}",
                endpoint.path
            );
        }
        assert!(!ENDPOINTS[0].takes_method("get"), "methods are case-sensitive (RFC 9110 §9.1)");
        assert_eq!(ENDPOINTS[0].allow(), "GET, HEAD");
    }
}
