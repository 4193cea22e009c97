//! The status page: a shell with the state and the routes, which its script fills and keeps up to
//! date.
//!
//! The script is the files of `assets/` one behind another, as one module. It gets what it begins
//! with as JSON in the page, and then listens to `/events` if an admin looks, else asks `/health`.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::sync::LazyLock;

use data_encoding::BASE64;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Lifecycle, Snapshot, Viewer};
use crate::proto::http::Response;

const STYLE: &str = include_str!("../../../assets/page.css");

/// It imports the library from `/client.js`.
const SCRIPT: &str = concat!(
    include_str!("../../../assets/words.js"),
    include_str!("../../../assets/charts.js"),
    include_str!("../../../assets/live.js"),
    include_str!("../../../assets/story.js"),
    include_str!("../../../assets/endings.js"),
    include_str!("../../../assets/connections.js"),
    include_str!("../../../assets/console.js"),
    include_str!("../../../assets/talk.js"),
);

/// The parts of the page that never change.
static FIXED: LazyLock<Fixed> = LazyLock::new(Fixed::new);

struct Fixed {
    style: String,
    script: String,
    /// `Content-Security-Policy`.
    policy: String,
}

impl Fixed {
    /// The page loads nothing but the library, and the policy holds a browser to that whatever a
    /// value on the page contains: the one style sheet and the one script are known by their
    /// hashes. The page may also open WebSockets to this gateway, listen to its events, and play
    /// the audio that came over them.
    fn new() -> Fixed {
        let policy = format!(
            "default-src 'none'; style-src {}; script-src {} 'self'; connect-src 'self'; img-src \
             data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            hash_source(STYLE),
            hash_source(SCRIPT)
        );
        Fixed {
            style: format!("<style>{STYLE}</style>"),
            script: format!("<script type=\"module\">{SCRIPT}</script>"),
            policy,
        }
    }
}

/// How a policy names inline text that is allowed (CSP Level 3, section 2.3.1).
fn hash_source(text: &str) -> String {
    format!("'sha256-{}'", BASE64.encode(&Sha256::digest(text)))
}

/// What the reader of the page reads. The page can switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the variants explain themselves")]
pub enum Language {
    English,
    Chinese,
}

impl Language {
    /// The first choice in an `Accept-Language` header (RFC 9110 §12.5.4).
    pub fn of(accepted: Option<&[u8]>) -> Language {
        let accepted = accepted.and_then(|value| str::from_utf8(value).ok()).unwrap_or_default();
        let mut best = (0.0, Language::English);
        for range in accepted.split(',') {
            let (tag, parameter) = range.split_once(';').unwrap_or((range, ""));
            let weight = parameter.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
            let primary = tag.trim().split('-').next().unwrap_or_default().to_ascii_lowercase();
            let language = match &*primary {
                "zh" => Language::Chinese,
                "en" => Language::English,
                _ => continue,
            };
            // Of equal ones the first counts.
            if let Ok(weight) = weight
                && weight > best.0
            {
                best = (weight, language);
            }
        }
        best.1
    }

    fn tag(self) -> &'static str {
        match self {
            Language::English => "en",
            Language::Chinese => "zh-CN",
        }
    }
}

/// `/` and `/gateway`: the status page.
pub fn page(snapshot: &Snapshot, language: Language) -> Response {
    let state = match snapshot.lifecycle {
        Lifecycle::Draining => "Shutting down",
        Lifecycle::Serving if snapshot.is_degraded() => "Degraded",
        Lifecycle::Serving => "Serving",
    };
    let body = fill(include_str!("../../../assets/page.html"), |name, out| match name {
        "language" => out.push_str(language.tag()),
        "title" => out.push_str(&format!("{state} · aivtuber-gateway")),
        "style" => out.push_str(&FIXED.style),
        "state" => out.push_str(state),
        "form" if has_form(snapshot) => out.push_str(include_str!("../../../assets/form.html")),
        "form" => {}
        "initial" => out.push_str(&initial(snapshot)),
        "script" => out.push_str(&FIXED.script),
        _ => unreachable!("page.html asks for {name}"),
    });
    Response::html(200, body)
        .with("Content-Security-Policy", &FIXED.policy)
        .with("Content-Language", language.tag())
        .with("Vary", "Accept-Language")
}

/// What the script begins with, as JSON in which nothing can end its element.
fn initial(snapshot: &Snapshot) -> String {
    let is_admin = snapshot.viewer == Viewer::Admin;
    let target = |route: &super::RouteView| match (is_admin, route.backends.len()) {
        (true, _) | (false, 0) => route.target.clone(),
        (false, 1) => "backend".to_owned(),
        (false, count) => format!("{count} backends"),
    };
    let routes = snapshot
        .routes
        .iter()
        .map(|route| json!({"name": route.name, "path": route.path, "target": target(route)}));
    let initial = json!({
        "admin": is_admin,
        "version": snapshot.version,
        "uptime_seconds": snapshot.uptime.as_secs(),
        "draining": snapshot.lifecycle == Lifecycle::Draining,
        "routes": routes.collect::<Vec<_>>(),
        "health": super::json::HealthJson::new(snapshot),
    });
    initial.to_string().replace('<', "\\u003c").replace('&', "\\u0026")
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

#[cfg(test)]
mod tests {
    use super::super::RouteView;
    use super::super::tests::{empty, failed, relayed, text, well};
    use super::super::{BackendView, RedisView};
    use super::*;
    use crate::service::stats::Stats;
    use serde_json::Value;

    fn shown(snapshot: &Snapshot) -> String {
        text(&page(snapshot, Language::English)).to_owned()
    }

    fn begins_with(html: &str) -> Value {
        let (_, rest) = html.split_once("id=\"initial\">").unwrap();
        serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn nothing_in_a_value_can_leave_its_place() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        let evil = "</script><b a='1'>&{{state}}<!--";
        snapshot.version = evil;
        snapshot.routes = vec![RouteView { path: evil.into(), ..relayed(evil, vec![well(evil)]) }];
        let html = shown(&snapshot);
        assert!(!html.contains("<b a=") && !html.contains("<!--"));
        let initial = begins_with(&html);
        assert_eq!(
            (&initial["version"], &initial["routes"][0]["target"]),
            (&evil.into(), &evil.into())
        );
    }

    #[test]
    fn page_names_the_state() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        assert!(shown(&snapshot).contains("<title>Serving · aivtuber-gateway</title>"));
        snapshot.routes =
            vec![relayed("a", vec![BackendView { state: failed(), ..well("ws://a/") }])];
        assert!(shown(&snapshot).contains("<title>Degraded"));
        snapshot.routes.clear();
        snapshot.results_wanted = true;
        snapshot.redis = RedisView::Disconnected;
        assert!(shown(&snapshot).contains("<title>Degraded"));
        snapshot.lifecycle = Lifecycle::Draining;
        assert!(shown(&snapshot).contains("<title>Shutting down"));
    }

    #[test]
    fn strangers_see_no_backend() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        snapshot.routes = vec![relayed("input", vec![well("ws://secret/"), well("ws://secret2/")])];
        assert!(shown(&snapshot).contains("ws://secret/"));
        snapshot.viewer = Viewer::Stranger;
        let html = shown(&snapshot);
        assert!(!html.contains("secret"));
        let initial = begins_with(&html);
        assert_eq!(initial["routes"][0]["target"], "2 backends");
        assert_eq!(initial["admin"], false);
    }

    #[test]
    fn admins_read_why_redis_is_away_or_does_not_keep_results() {
        let stats = Stats::new();
        for (redis, why) in [
            (RedisView::Disconnected, "redis.internal:6379: Connection refused"),
            (RedisView::Connected, "MISCONF <Redis> is configured to save RDB snapshots"),
        ] {
            let mut snapshot = empty(&stats);
            (snapshot.redis, snapshot.results_wanted) = (redis, true);
            snapshot.redis_problem = Some(why.into());
            let html = shown(&snapshot);
            assert!(html.contains("<title>Degraded"));
            let problem = &begins_with(&html)["health"]["problems"][0];
            assert_eq!(problem, &format!("redis: {why}"));
            snapshot.viewer = Viewer::Stranger;
            assert_eq!(begins_with(&shown(&snapshot))["health"]["problems"], Value::Null);
        }
        // Where the script takes it from.
        assert!(SCRIPT.contains("why(\"redis: \")"));
    }

    #[test]
    fn form_is_there_where_it_can_work() {
        let stats = Stats::new();
        let mut snapshot = empty(&stats);
        let form = "<form id=\"talk-form\"";
        assert!(!shown(&snapshot).contains(form));
        snapshot.routes = vec![relayed("input", vec![well("ws://a/")])];
        assert!(!shown(&snapshot).contains(form));
        snapshot
            .routes
            .push(RouteView { path: "/ws/output/{task_id}".into(), ..relayed("output", vec![]) });
        assert!(shown(&snapshot).contains(form));
        snapshot.routes[1].path = "/ws/output/{a}/{b}".into();
        assert!(!shown(&snapshot).contains(form));
    }

    #[test]
    fn policy_allows_this_style_and_this_script_only() {
        let stats = Stats::new();
        let response = page(&empty(&stats), Language::Chinese);
        let header = |wanted: &str| {
            let found = response.headers.iter().find(|(name, _)| *name == wanted);
            found.map(|(_, value)| value.clone()).unwrap()
        };
        let policy = header("Content-Security-Policy");
        for part in [&hash_source(STYLE), &hash_source(SCRIPT), "default-src 'none'"] {
            assert!(policy.contains(part), "{policy}");
        }
        assert!(!policy.contains("unsafe"));
        assert_eq!(header("Vary"), "Accept-Language");
        assert_eq!(header("Content-Language"), "zh-CN");
        assert!(text(&response).contains("<html lang=\"zh-CN\">"));
        // An end tag in the script would end it.
        assert!(!SCRIPT.contains("</script"));
    }

    #[test]
    fn language_is_the_first_choice() {
        use Language::{Chinese, English};
        for (accepted, language) in [
            ("", English),
            ("zh", Chinese),
            ("zh-CN,zh;q=0.9,en;q=0.8", Chinese),
            ("en-US,en;q=0.9,zh-CN;q=0.8", English),
            ("ja,zh-TW;q=0.7", Chinese),
            ("de, fr", English),
            ("en;q=0.3, zh-Hans;q=0.5", Chinese),
            ("zh;q=0", English),
            ("zh;q=x", English),
            ("ZH-cn", Chinese),
        ] {
            assert_eq!(Language::of(Some(accepted.as_bytes())), language, "{accepted}");
        }
        assert_eq!(Language::of(None), English);
        assert_eq!(Language::of(Some(b"\xff")), English);
    }
}
