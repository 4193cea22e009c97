//! The status page.

#![expect(clippy::indexing_slicing, reason = "lengths are checked before")]
#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::fmt::{self, Write};
use std::sync::LazyLock;
use std::time::Duration;

use data_encoding::BASE64;
use sha2::{Digest, Sha256};

use super::super::upstreams::BackendState;
use super::{Lifecycle, ResultsView, RouteView, Snapshot, Viewer, put, rfc3339};
use crate::proto::http::Response;

/// The most connections that the status page lists; `/connections` has all.
pub const PAGE_CONNECTIONS_MAX: usize = 100;

const STYLE: &str = include_str!("../../../assets/page.css");

/// The form. It imports the library from `/client.js`.
const FORM: &str = include_str!("../../../assets/page.js");

/// The parts of the page that never change.
static FIXED: LazyLock<Fixed> = LazyLock::new(Fixed::new);

struct Fixed {
    style: String,
    script: String,
    /// `Content-Security-Policy` of the page without the form, and with it.
    policy: String,
    policy_with_form: String,
}

impl Fixed {
    /// The page loads nothing but the library, and the policy holds a browser to that whatever a
    /// value on the page contains: the one style sheet and the one script are known by their
    /// hashes. With the form, the page may also load `/client.js`, open WebSockets to this gateway,
    /// and play the audio that came over them.
    fn new() -> Fixed {
        let policy = format!(
            "default-src 'none'; style-src {}; img-src data:; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
            hash_source(STYLE)
        );
        let policy_with_form = format!(
            "{policy}; script-src {} 'self'; connect-src 'self'; media-src blob:",
            hash_source(FORM)
        );
        Fixed {
            style: format!("<style>{STYLE}</style>"),
            script: format!("<script type=\"module\">{FORM}</script>\n"),
            policy,
            policy_with_form,
        }
    }
}

/// How a policy names inline text that is allowed (CSP Level 3, section 2.3.1).
fn hash_source(text: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text)))
}

/// `/`: the status page.
pub fn page(snapshot: &Snapshot) -> Response {
    let (state, state_class) = match snapshot.lifecycle {
        Lifecycle::Draining => ("Shutting down", "warn"),
        Lifecycle::Serving if snapshot.is_degraded() => ("Degraded", "bad"),
        Lifecycle::Serving => ("Serving", "good"),
    };
    let has_form = has_form(snapshot);
    let body = fill(include_str!("../../../assets/page.html"), |name, out| match name {
        "title" => out.push_str(&format!("{state} · aivtuber-gateway")),
        "style" => out.push_str(&FIXED.style),
        "state" => out.push_str(state),
        "state_class" => out.push_str(state_class),
        "figures" => push_figures(out, snapshot),
        "routes" => snapshot.routes.iter().for_each(|route| push_route(out, route, snapshot)),
        "connections_hidden" if shown_connections(snapshot) > 0 => {}
        "connections_hidden" => out.push_str(" hidden"),
        "connections" => push_connections(out, snapshot),
        "connections_note" => push_connections_note(out, snapshot),
        "form" if has_form => {
            out.push_str(include_str!("../../../assets/form.html"));
            out.push_str(&FIXED.script);
        }
        "form" => {}
        _ => unreachable!("page.html asks for {name}"),
    });
    let policy = if has_form { &FIXED.policy_with_form } else { &FIXED.policy };
    Response::html(200, body).with("Content-Security-Policy", policy)
}

/// Both paths that the form needs are routed.
fn has_form(snapshot: &Snapshot) -> bool {
    let has = |fits: fn(&str) -> bool| snapshot.routes.iter().any(|route| fits(&route.path));
    has(|path| path == "/ws/input")
        && has(|path| {
            let name = path.strip_prefix("/ws/output/{").and_then(|rest| rest.strip_suffix('}'));
            name.is_some_and(|name| !name.contains('/'))
        })
}

/// `template` with each `{{name}}` replaced by what `push` writes for it. What was written is not
/// searched again, so a value that looks like a placeholder stays as it is.
fn fill(template: &str, mut push: impl FnMut(&str, &mut String)) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut parts = template.split("{{");
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("every placeholder in page.html is closed");
        push(name, &mut out);
        out.push_str(rest);
    }
    out
}

fn push_figures(out: &mut String, snapshot: &Snapshot) {
    let refused: u64 = snapshot.stats.refused().values().sum();
    let mut figures = vec![
        ("WebSockets", snapshot.active_connections().to_string()),
        ("Accepted", snapshot.stats.connections_accepted.to_string()),
        ("Refused", refused.to_string()),
        ("Redis", snapshot.redis.word().to_owned()),
    ];
    if snapshot.results_wanted {
        let ResultsView { waiting, retained, retained_bytes } = snapshot.results;
        figures.push(("Clients waiting", waiting.to_string()));
        figures.push(("Results delivered", snapshot.stats.results_delivered.to_string()));
        figures.push(("Results kept", format!("{retained} ({})", human_bytes(retained_bytes))));
    }
    figures.push(("Up for", human_duration(snapshot.uptime)));
    figures.push(("Version", snapshot.version.to_owned()));
    for (name, value) in figures {
        put(out, format_args!("\n    <div><dt>{name}</dt><dd>{}</dd></div>", Html(&value)));
    }
}

fn push_route(out: &mut String, route: &RouteView, snapshot: &Snapshot) {
    let open = snapshot.stats.routes().get(route.name).map_or(0, |stats| stats.open);
    let opened = snapshot.stats.routes().get(route.name).map_or(0, |stats| stats.upgrades);
    put(
        out,
        format_args!(
            "\n      <tr><td>{}</td><td><code>{}</code></td><td>",
            Html(route.name),
            Html(&route.path)
        ),
    );
    let is_admin = snapshot.viewer == Viewer::Admin;
    if route.backends.is_empty() {
        put(out, format_args!("{}", Html(&route.target)));
    }
    for (index, backend) in route.backends.iter().enumerate() {
        let (class, word) = match (backend.has_failed(), backend.resting) {
            (false, _) if backend.state == BackendState::Untried => ("warn", "not tried yet"),
            (false, _) => ("good", "ok"),
            (true, true) => ("bad", "failed, resting"),
            (true, false) => ("bad", "failed, next client tries"),
        };
        let new_line = if index > 0 { "<br>" } else { "" };
        put(
            out,
            format_args!(
                "{new_line}<code>{}</code> <span class=\"state {class}\">{word}</span>",
                Html(if is_admin { backend.url } else { "backend" })
            ),
        );
    }
    put(out, format_args!("</td><td class=\"n\">{open}</td><td class=\"n\">{opened}</td></tr>"));
}

fn push_connections(out: &mut String, snapshot: &Snapshot) {
    for connection in &snapshot.connections[..shown_connections(snapshot)] {
        put(
            out,
            format_args!(
                "\n      <tr><td><code>{}</code></td><td>{}</td><td><code>{}</code></td><td>",
                Html(&connection.id),
                Html(connection.state),
                connection.client
            ),
        );
        for (index, text) in
            [&connection.task_id, &connection.backend].into_iter().flatten().enumerate()
        {
            put(
                out,
                format_args!("{}<code>{}</code>", if index > 0 { "<br>" } else { "" }, Html(text)),
            );
        }
        out.push_str("</td>");
        for traffic in [connection.traffic.from_client, connection.traffic.to_client] {
            put(
                out,
                format_args!(
                    "<td class=\"n\">{} <span class=\"soft\">in {}</span></td>",
                    human_bytes(traffic.bytes),
                    plural(traffic.frames, "frame")
                ),
            );
        }
        let opened = rfc3339(connection.opened);
        put(
            out,
            format_args!(
                "<td class=\"n\">{}</td><td class=\"t\"><time datetime=\"{opened}\" title=\"{opened}\">{}</time></td></tr>",
                human_duration(connection.idle),
                &opened[5..19].replace('T', " ")
            ),
        );
    }
}

/// The note below the list of connections.
fn push_connections_note(out: &mut String, snapshot: &Snapshot) {
    let (shown, all) = (shown_connections(snapshot), snapshot.active_connections());
    if snapshot.viewer == Viewer::Stranger {
        let note = "Connections and backends are shown to admins only: requests from an address in \
                    <code>admin_from</code>, by IP address, <code>localhost</code> or a name in \
                    <code>server_names</code>.";
        put(out, format_args!("\n  <p>{note}</p>"));
    } else if shown == 0 {
        out.push_str("\n  <p>No connection is open.</p>");
    } else if all > shown as u64 {
        put(
            out,
            format_args!(
                "\n  <p>The first {shown} of {all}; <a href=\"/connections\">all of them</a>.</p>"
            ),
        );
    }
}

fn shown_connections(snapshot: &Snapshot) -> usize {
    if snapshot.viewer == Viewer::Stranger {
        return 0;
    }
    snapshot.connections.len().min(PAGE_CONNECTIONS_MAX)
}

/// Text escaped for use between tags and in quoted attributes.
struct Html<'t>(&'t str);

impl fmt::Display for Html<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for sign in self.0.chars() {
            match sign {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                _ => f.write_char(sign)?,
            }
        }
        Ok(())
    }
}

/// A duration in its two largest units: `3 d 4 h`, `2 min 5 s`, `0 s`.
fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut amount = bytes as f64 / 1024.0;
    let mut unit = 0;
    // A value that would be rounded to 1024.0 is shown in the next unit.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    format!("{amount:.1} {}", UNITS[unit])
}

fn plural(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{connection, empty, failed, relayed, text, well};
    use super::super::{BackendView, ConnectionView};
    use super::*;
    use crate::service::stats::Stats;

    #[test]
    fn page_escapes_every_value_and_lists_at_most_100_connections() {
        let mut stats = Stats::new();
        stats.count_refused("full");
        (0..150).for_each(|_| stats.count_open("input"));
        let mut snapshot = empty(&stats);
        let evil = "<b a='1' c=\"2\">&{{state}}";
        snapshot.version = evil;
        snapshot.routes = vec![RouteView { path: evil.into(), ..relayed(evil, vec![well(evil)]) }];
        snapshot.routes.push(RouteView { target: evil.into(), ..relayed("served", vec![]) });
        for number in 0..150 {
            let connection = connection(&format!("{evil}_{number}"));
            snapshot.connections.push(ConnectionView {
                task_id: Some(evil.into()),
                backend: Some(evil.into()),
                ..connection
            });
        }
        let response = page(&snapshot);
        let html = text(&response);
        assert!(!html.contains("<b a="));
        assert_eq!(
            html.matches("&lt;b a=&#39;1&#39; c=&quot;2&quot;&gt;&amp;{{state}}").count(),
            1 + 3 + 1 + 3 * 100
        );
        assert!(html.contains("_99</code>") && !html.contains("_100</code>"));
        assert!(html.contains("The first 100 of 150"));
        assert!(html.contains("Serving"));
        assert!(
            response.headers.iter().any(|(name, value)| *name == "Content-Security-Policy" && value.contains("'none'"))
        );
    }

    #[test]
    fn page_shows_the_state() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        assert!(text(&page(&snapshot)).contains("No connection is open."));
        snapshot.routes = vec![relayed(
            "a",
            vec![BackendView { resting: true, state: failed(), ..well("ws://a/") }],
        )];
        assert!(text(&page(&snapshot)).contains("Degraded"));
        assert!(text(&page(&snapshot)).contains("failed, resting"));
        snapshot.lifecycle = Lifecycle::Draining;
        assert!(text(&page(&snapshot)).contains("Shutting down"));
    }

    #[test]
    fn page_has_the_form_where_both_paths_are_routed() {
        let stats = Stats::new();
        let view = |path: &str| RouteView { path: path.into(), ..relayed("any", vec![]) };
        for (paths, has_form) in [
            (&["/ws/input", "/ws/output/{task_id}"][..], true),
            (&["/ws/output/{id}", "/other", "/ws/input"], true),
            (&[], false),
            (&["/ws/input"], false),
            (&["/ws/output/{task_id}"], false),
            (&["/ws/input", "/ws/output/{a}/{b}"], false),
            (&["/ws/input/{room}", "/ws/output/{task_id}"], false),
        ] {
            let mut snapshot = empty(&stats);
            snapshot.routes = paths.iter().map(|path| view(path)).collect();
            let response = page(&snapshot);
            let policy = &response
                .headers
                .iter()
                .find(|(name, _)| *name == "Content-Security-Policy")
                .unwrap()
                .1;
            assert_eq!(text(&response).contains("<script"), has_form, "{paths:?}");
            assert_eq!(policy.contains("script-src"), has_form, "{policy}");
            assert!(policy.starts_with("default-src 'none'; "), "{policy}");
        }
    }

    #[test]
    fn policy_allows_exactly_the_style_and_script_of_the_page() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        snapshot.routes = ["/ws/input", "/ws/output/{task_id}"]
            .map(|path| RouteView { path: path.into(), ..relayed("any", vec![]) })
            .into();
        let response = page(&snapshot);
        let (_, policy) =
            response.headers.iter().find(|(name, _)| *name == "Content-Security-Policy").unwrap();
        for (open, close, directive) in [
            ("<style>", "</style>", "style-src"),
            ("<script type=\"module\">", "</script>", "script-src"),
        ] {
            let (_, rest) = text(&response).split_once(open).expect(open);
            let (inline, _) = rest.split_once(close).expect(close);
            assert!(policy.contains(&format!("{directive} {}", hash_source(inline))), "{policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }

    #[test]
    fn assets_can_be_written_into_the_page() {
        for (name, text) in [("page.css", STYLE), ("page.js", FORM)] {
            assert!(!text.contains("</") && !text.contains("<!--"), "{name} would end its element");
        }
    }

    #[test]
    fn durations_and_sizes_are_readable() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (125, "2 min 5 s"),
            (7260, "2 h 1 min"),
            (273_600, "3 d 4 h"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), words);
        }
        for (bytes, words) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16384.0 PiB"),
        ] {
            assert_eq!(human_bytes(bytes), words);
        }
    }
}
