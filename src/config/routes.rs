//! Routes in the file: a list of tables, which the table of keys cannot hold, so they are read
//! here.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::did_you_mean;
use super::problems::FileProblems;
use super::values::{
    TIB, each, parse_time, quoted, show_size, show_time, size, strings, type_name,
};
use crate::service::assets::Files;
use crate::service::route::{self, Access, HttpLimits, RouteSettings, TargetSettings};
use crate::service::token::Token;
use crate::service::url::{BackendProtocol, BackendSecurity, BackendUrl, Template};

/// The keys of a `[[route]]`.
pub const ROUTE_KEYS: [&str; 13] = [
    "name",
    "path",
    "backend",
    "host",
    "insecure",
    "learn_task",
    "max_body",
    "response_timeout",
    "serve",
    "token",
    "token_file",
    "files",
    "fallback",
];

/// The keys of which a route has exactly one.
pub(super) const TARGETS: [&str; 3] = ["backend", "serve", "files"];

/// What `serve` may name.
pub(super) const SERVED: [&str; 2] = ["output", "ingest"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Served {
    Output,
    Ingest,
}

/// The routes of a gateway whose configuration has none.
pub(super) fn default_routes() -> Vec<RouteSettings> {
    let route = |name: &str, path, target| RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a default path is valid"),
        target,
    };
    let relayed = |url| TargetSettings::Backend {
        urls: vec![BackendUrl::parse(url).expect("a default URL is valid")],
        host: None,
        learn_task: None,
    };
    vec![
        route("input", "/ws/input", relayed("ws://localhost:8001/ws/input")),
        route("output", "/ws/output/{task_id}", TargetSettings::Output),
    ]
}

/// Appends the route as the file would have it.
pub(super) fn show_route(text: &mut String, route: &RouteSettings) {
    let (name, path) = (quoted(&route.name), quoted(&route.path.to_string()));
    let _ = writeln!(text, "[[route]]\nname = {name}\npath = {path}");
    match &route.target {
        TargetSettings::Output => text.push_str("serve = \"output\"\n"),
        TargetSettings::Ingest(access) => {
            text.push_str("serve = \"ingest\"\n");
            if !access.token_file.is_empty() {
                let _ = writeln!(text, "token_file = {}", quoted(&access.token_file));
            } else if access.token.is_some() {
                text.push_str("# *** replaces a token\ntoken = \"***\"\n");
            }
        }
        TargetSettings::Files(Files { folder, fallback }) => {
            let _ = writeln!(text, "files = {}", quoted(&folder.to_string_lossy()));
            if let Some(name) = fallback {
                let _ = writeln!(text, "fallback = {}", quoted(name));
            }
        }
        TargetSettings::Backend { learn_task, .. } => {
            show_backends(text, &route.target);
            if let Some(field) = learn_task {
                let _ = writeln!(text, "learn_task = {}", quoted(field));
            }
        }
        TargetSettings::Http { limits, .. } => {
            show_backends(text, &route.target);
            if let Some(bytes) = limits.max_body {
                let _ = writeln!(text, "max_body = {}", quoted(&show_size(bytes.unwrap_or(0))));
            }
            if let Some(timeout) = limits.response_timeout {
                let _ = writeln!(
                    text,
                    "response_timeout = {}",
                    quoted(&show_time(timeout.unwrap_or_default()))
                );
            }
        }
    }
    text.push('\n');
}

/// Appends what routes with backends of any kind have.
fn show_backends(text: &mut String, target: &TargetSettings) {
    let urls = target.urls();
    let shown: Vec<_> = urls.iter().map(|url| quoted(&url.to_string())).collect();
    let _ = writeln!(text, "backend = [{}]", shown.join(", "));
    if let Some(host) = target.host() {
        let _ = writeln!(text, "host = {}", quoted(host));
    }
    if urls.iter().any(|url| url.security() == BackendSecurity::UnverifiedTls) {
        text.push_str("insecure = true\n");
    }
}

/// The token that is the first line of a file.
fn first_line(path: &str) -> Result<Token, String> {
    let bytes = super::file::read(Path::new(path)).map_err(|why| format!("{path} {why}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("{path} is not UTF-8"))?;
    let line = text.lines().next().unwrap_or_default();
    Token::parse(line).map_err(|why| format!("the first line of {path} {why}"))
}

/// Reads the routes of a file. Those that cannot be used are left out and added to `problems`.
pub(super) fn read_routes(
    problems: &mut FileProblems,
    value: &Spanned<DeValue<'_>>,
) -> Vec<RouteSettings> {
    const WANTED: &str = "routes are a list of tables: write `[[route]]`";
    let DeValue::Array(items) = value.get_ref() else {
        problems.add(value.span(), Some("route"), WANTED);
        return Vec::new();
    };
    let mut routes = Vec::new();
    for item in items.iter() {
        let DeValue::Table(table) = item.get_ref() else {
            problems.add(item.span(), Some("route"), WANTED);
            return Vec::new();
        };
        let before = problems.len();
        let mut reader = RouteReader { problems, table, span: item.span() };
        if let Some(route) = reader.read() {
            routes.push(route);
            // Checked with those before it, so that a clash is reported at the later one.
            if let Err(why) = route::check(&routes) {
                problems.add(item.span(), None, why);
            }
        }
        if problems.len() > before {
            routes.pop();
        }
    }
    routes
}

/// Reads one route.
struct RouteReader<'a> {
    problems: &'a mut FileProblems,
    table: &'a DeTable<'a>,
    /// Of the route's table, for what is wrong with the route as a whole.
    span: Range<usize>,
}

impl RouteReader<'_> {
    /// The route, or nothing if something is wrong with it.
    fn read(&mut self) -> Option<RouteSettings> {
        let before = self.problems.len();
        self.refuse_unknown_keys();
        let name = self.text("name").map(|(name, _)| name);
        let path = self.path();
        let target = self.target();
        for name in ["name", "path"] {
            if !self.table.contains_key(name) {
                self.refuse(&format!("route.{name}"), "is missing, every route needs one");
            }
        }
        if self.problems.len() > before {
            return None;
        }
        Some(RouteSettings { name: name?, path: path?, target: target? })
    }

    fn refuse(&mut self, key: &str, why: &str) {
        self.problems.add(self.span.clone(), Some(key), why);
    }

    fn refuse_unknown_keys(&mut self) {
        for (name, _) in self.table {
            if !ROUTE_KEYS.contains(&name.get_ref().as_ref()) {
                let hint = did_you_mean(name.get_ref(), ROUTE_KEYS);
                let key = format!("route.{}", name.get_ref());
                self.problems.add(name.span(), Some(&key), format!("unknown key{hint}"));
            }
        }
    }

    fn path(&mut self) -> Option<Template> {
        let (path, span) = self.text("path")?;
        match Template::parse(&path) {
            Ok(path) => Some(path),
            Err(why) => {
                self.problems.add(span, Some("route.path"), why);
                None
            }
        }
    }

    fn target(&mut self) -> Option<TargetSettings> {
        let host = self.text("host").map(|(host, _)| host);
        let learn_task = self.text("learn_task").map(|(field, _)| field);
        let learn_task = learn_task.filter(|field| !field.is_empty());
        let urls = self.backend().map(|urls| self.verified(urls));
        let has_backend = self.table.contains_key("backend");
        let served = self.served();
        let access = self.access(served);
        let files = self.files();
        match TARGETS.iter().filter(|key| self.table.contains_key(**key)).count() {
            0 => self.refuse("route", "a route needs `backend`, `serve` or `files`"),
            1 => {}
            _ => self.refuse("route", "a route has one of `backend`, `serve` and `files`"),
        }
        if !has_backend && host.is_some() {
            self.refuse("route.host", "is sent to a backend, and this route has none");
        } else if !has_backend && learn_task.is_some() {
            self.refuse("route.learn_task", "is read from a backend, and this route has none");
        }
        if served.is_some() || files.is_some() {
            // Only to refuse what is for backends.
            self.http_limits(false);
        }
        match (served, files) {
            (Some(Served::Output), _) => Some(TargetSettings::Output),
            (Some(Served::Ingest), _) => Some(TargetSettings::Ingest(access)),
            (None, Some(files)) => Some(TargetSettings::Files(files)),
            (None, None) => {
                let urls = urls?;
                let is_http = urls.iter().any(|url| url.protocol() == BackendProtocol::Http);
                let limits = self.http_limits(is_http);
                if !is_http {
                    return Some(TargetSettings::Backend { urls, host, learn_task });
                }
                if learn_task.is_some() {
                    let why = "is read from WebSockets, and this route is for plain HTTP";
                    self.refuse("route.learn_task", why);
                }
                Some(TargetSettings::Http { urls, host, limits })
            }
        }
    }

    /// What the route has in place of the limits of `[proxy]`.
    fn http_limits(&mut self, is_http: bool) -> HttpLimits {
        for name in ["max_body", "response_timeout"] {
            if !is_http && self.table.contains_key(name) {
                let key = format!("route.{name}");
                self.refuse(&key, "is for routes with `http://` or `https://` backends");
            }
        }
        let max_body = self.limit("max_body", |value| {
            let bytes = size(value).unwrap_or_else(|| Err("a size is expected".into()))?;
            if bytes > TIB {
                return Err(format!("{} is out of range", show_size(bytes)));
            }
            Ok((bytes > 0).then_some(bytes))
        });
        let response_timeout = self.limit("response_timeout", |value| {
            parse_time(value.get_ref().as_str().ok_or("a duration is expected")?)
        });
        HttpLimits { max_body, response_timeout }
    }

    /// What `read` finds under `name`; `None` where there is nothing of use.
    fn limit<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&Spanned<DeValue<'_>>) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.table.get(name)?;
        match read(value) {
            Ok(limit) => Some(limit),
            Err(why) => {
                self.problems.add(value.span(), Some(&format!("route.{name}")), why);
                None
            }
        }
    }

    /// The folder whose files are served.
    fn files(&mut self) -> Option<Files> {
        let folder = self.text("files");
        let fallback = self.text("fallback").filter(|(name, _)| !name.is_empty());
        if fallback.is_some() && !self.table.contains_key("files") {
            self.refuse("route.fallback", "is for routes with `files`");
        }
        let folder = Path::new(&folder?.0).into();
        Some(Files { folder, fallback: fallback.map(|(name, _)| name.into()) })
    }

    /// The backends, as `insecure` says.
    fn verified(&mut self, urls: Vec<BackendUrl>) -> Vec<BackendUrl> {
        let Some(value) = self.table.get("insecure") else { return urls };
        match value.get_ref() {
            DeValue::Boolean(false) => urls,
            DeValue::Boolean(true) => {
                if urls.iter().all(|url| url.security() == BackendSecurity::Plain) {
                    self.refuse(
                        "route.insecure",
                        "no backend of this route is a `wss://` or `https://` URL",
                    );
                }
                urls.into_iter().map(BackendUrl::without_verification).collect()
            }
            _ => {
                let why = format!("found {}, expected true or false", type_name(value));
                self.problems.add(value.span(), Some("route.insecure"), why);
                urls
            }
        }
    }

    fn served(&mut self) -> Option<Served> {
        let (serve, span) = self.text("serve")?;
        match &*serve {
            "output" => Some(Served::Output),
            "ingest" => Some(Served::Ingest),
            other => {
                let hint = did_you_mean(other, SERVED);
                let why =
                    format!("{other:?} cannot be served, only \"output\" and \"ingest\" can{hint}");
                self.problems.add(span, Some("route.serve"), why);
                None
            }
        }
    }

    /// Who may connect, with the token that is the first line of `token_file`.
    fn access(&mut self, served: Option<Served>) -> Access {
        let (in_place, in_file) = (self.text("token"), self.text("token_file"));
        let mut access = Access::default();
        for (name, value) in [("token", &in_place), ("token_file", &in_file)] {
            if self.table.contains_key(name) && served != Some(Served::Ingest) {
                self.refuse(&format!("route.{name}"), "is for routes with `serve = \"ingest\"`");
                return access;
            }
            let Some((text, span)) = value.as_ref().filter(|(text, _)| !text.is_empty()) else {
                continue;
            };
            let token = match name {
                "token" => Token::parse(text).map_err(|why| format!("the token {why}")),
                _ => first_line(text),
            };
            match token {
                Ok(_) if access.token.is_some() => {
                    self.refuse("route", "a route has `token` or `token_file`, not both");
                }
                Ok(token) => access.token = Some(token),
                Err(why) => self.problems.add(span.clone(), Some(&format!("route.{name}")), why),
            }
        }
        access.token_file = in_file.map(|(path, _)| path).unwrap_or_default();
        access
    }

    /// The string under `name`, with its place.
    fn text(&mut self, name: &str) -> Option<(String, Range<usize>)> {
        let value = self.table.get(name)?;
        match value.get_ref().as_str() {
            Some(text) => Some((text.to_owned(), value.span())),
            None => {
                let why = format!("found {}, expected a string", type_name(value));
                self.problems.add(value.span(), Some(&format!("route.{name}")), why);
                None
            }
        }
    }

    fn backend(&mut self) -> Option<Vec<BackendUrl>> {
        let key = Some("route.backend");
        let value = self.table.get("backend")?;
        let Some((texts, spans)) = strings(value) else {
            let found = type_name(value);
            let why = format!("found {found}, expected a string, or a list of strings");
            self.problems.add(value.span(), key, why);
            return None;
        };
        match each(&texts, BackendUrl::parse) {
            Ok(urls) => Some(urls),
            Err(bad) => {
                let span = spans.get(bad.index).cloned().unwrap_or(value.span());
                self.problems.add(span, key, bad.why);
                None
            }
        }
    }
}
