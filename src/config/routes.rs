//! Routes: a list of tables, so they have their own reader.

use std::fmt::Write as _;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::nearest::did_you_mean;
use super::problems::FileProblems;
use super::values::{a_type, each, quoted, strings};
use crate::service::route::{self, BackendUrl, RouteSettings, Target, Template};

/// The keys of a `[[route]]`.
pub const ROUTE_KEYS: [&str; 5] = ["name", "path", "backend", "host", "serve"];

pub(super) fn default_routes() -> Vec<RouteSettings> {
    let route = |name: &str, path, target| RouteSettings {
        name: name.into(),
        path: Template::parse(path).expect("a default path is right"),
        target,
    };
    let relayed = |url| Target::Backend {
        urls: vec![BackendUrl::parse(url).expect("a default URL is right")],
        host: None,
    };
    vec![
        route("input", "/ws/input", relayed("ws://localhost:8001/ws/input")),
        route("output", "/ws/output/{task_id}", Target::Output),
    ]
}

pub(super) fn show_route(text: &mut String, route: &RouteSettings) {
    let _ = writeln!(
        text,
        "[[route]]\nname = {}\npath = {}",
        quoted(&route.name),
        quoted(&route.path.to_string())
    );
    match &route.target {
        Target::Output => text.push_str("serve = \"output\"\n"),
        Target::Backend { urls, host } => {
            let urls: Vec<_> = urls.iter().map(|url| quoted(&url.to_string())).collect();
            let _ = writeln!(text, "backend = [{}]", urls.join(", "));
            if let Some(host) = host {
                let _ = writeln!(text, "host = {}", quoted(host));
            }
        }
    }
    text.push('\n');
}

/// The routes of a file. Those that are wrong are left out.
pub(super) fn read_routes(
    problems: &mut FileProblems,
    value: &Spanned<DeValue<'_>>,
) -> Vec<RouteSettings> {
    let wanted = "routes are a list of tables: write `[[route]]`".to_owned();
    let DeValue::Array(items) = value.get_ref() else {
        problems.refuse(value.span(), Some("route"), wanted);
        return Vec::new();
    };
    let mut routes = Vec::new();
    for item in items.iter() {
        let DeValue::Table(table) = item.get_ref() else {
            problems.refuse(item.span(), Some("route"), wanted);
            return Vec::new();
        };
        let before = problems.len();
        if let Some(route) = read_route(problems, table, item.span()) {
            routes.push(route);
            // Each with those before it: so a clash is told at the later one.
            if let Err(why) = route::check(&routes) {
                problems.refuse(item.span(), None, why);
            }
        }
        if problems.len() > before {
            routes.pop();
        }
    }
    routes
}

fn read_route(
    problems: &mut FileProblems,
    table: &DeTable<'_>,
    span: Range<usize>,
) -> Option<RouteSettings> {
    let before = problems.len();
    for (name, _) in table {
        if !ROUTE_KEYS.contains(&name.get_ref().as_ref()) {
            let hint = did_you_mean(name.get_ref(), ROUTE_KEYS);
            problems.refuse(
                name.span(),
                Some(&format!("route.{}", name.get_ref())),
                format!("unknown key{hint}"),
            );
        }
    }
    let name = route_text(problems, table, "name");
    let path = route_text(problems, table, "path");
    let host = route_text(problems, table, "host").map(|(host, _)| host);
    let serve = route_text(problems, table, "serve");
    let urls = match table.get("backend") {
        Some(value) => read_backend(problems, value),
        None => None,
    };
    let is_served = serve.is_some();
    if let Some((serve, span)) = serve
        && serve != "output"
    {
        let hint = did_you_mean(&serve, ["output"]);
        problems.refuse(
            span,
            Some("route.serve"),
            format!("{serve:?} is not \"output\", which is all that can be served{hint}"),
        );
    }
    match (table.contains_key("backend"), is_served) {
        (true, true) => {
            problems.refuse(
                span.clone(),
                Some("route"),
                "a route has `backend` or `serve`, not both".into(),
            );
        }
        (false, false) if !table.contains_key("serve") => {
            problems.refuse(
                span.clone(),
                Some("route"),
                "a route needs `backend` or `serve`".into(),
            );
        }
        (false, _) if host.is_some() => {
            problems.refuse(
                span.clone(),
                Some("route.host"),
                "it is sent to a backend, and this route has none".into(),
            );
        }
        _ => {}
    }
    for (name, is_there) in
        [("name", table.contains_key("name")), ("path", table.contains_key("path"))]
    {
        if !is_there {
            problems.refuse(
                span.clone(),
                Some(&format!("route.{name}")),
                "it is missing, every route needs one".into(),
            );
        }
    }
    let path = match path {
        Some((path, span)) => match Template::parse(&path) {
            Ok(path) => Some(path),
            Err(why) => {
                problems.refuse(span, Some("route.path"), why);
                None
            }
        },
        None => None,
    };
    if problems.len() > before {
        return None;
    }
    let target = if is_served { Target::Output } else { Target::Backend { urls: urls?, host } };
    Some(RouteSettings { name: name?.0, path: path?, target })
}

fn route_text(
    problems: &mut FileProblems,
    table: &DeTable<'_>,
    name: &str,
) -> Option<(String, Range<usize>)> {
    let value = table.get(name)?;
    match value.get_ref().as_str() {
        Some(text) => Some((text.to_owned(), value.span())),
        None => {
            let why = format!("it is {}, what is allowed is a string", a_type(value));
            problems.refuse(value.span(), Some(&format!("route.{name}")), why);
            None
        }
    }
}

fn read_backend(
    problems: &mut FileProblems,
    value: &Spanned<DeValue<'_>>,
) -> Option<Vec<BackendUrl>> {
    let key = Some("route.backend");
    let Some((texts, spans)) = strings(value) else {
        let why =
            format!("it is {}, what is allowed is a string, or a list of strings", a_type(value));
        problems.refuse(value.span(), key, why);
        return None;
    };
    match each(&texts, BackendUrl::parse) {
        Ok(urls) => Some(urls),
        Err((index, why)) => {
            problems.refuse(spans[index].clone(), key, why);
            None
        }
    }
}
