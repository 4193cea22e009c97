//! `/connections/closed`: the last connections that ended, filtered by the query.

#![expect(clippy::expect_used, reason = "each message says why it cannot happen")]

use std::time::Duration;

use serde::Serialize;

use super::super::ledger::{ClosedConnection, Ledger};
use super::json::Count;
use super::rfc3339;
use crate::proto::http::Response;
use crate::proto::message::percent_decoded;
use crate::service::trust::Client;

/// Connections in one answer, unless the query asks for another number.
const LIMIT: usize = 100;

/// The largest number of connections in one answer.
const LIMIT_MAX: usize = 1000;

/// What a query asks for. A filter that is absent lets everything pass.
#[derive(Debug, Default)]
struct Filter {
    limit: Option<usize>,
    id: Option<String>,
    task: Option<String>,
    /// An address, with or without a port.
    client: Option<String>,
    route: Option<String>,
    reason: Option<String>,
}

/// The newest first. An unknown filter or a bad number is an error, so that a typing mistake does
/// not show everything.
pub fn closed(ledger: &Ledger, query: &str) -> Response {
    #[derive(Serialize)]
    struct Closed<'a> {
        total_closed: u64,
        closed: Vec<ClosedJson<'a>>,
    }
    let filter = match Filter::read(query) {
        Ok(filter) => filter,
        Err(why) => return Response::error(400, why),
    };
    let fitting = ledger.newest_first().filter(|one| filter.fits(one));
    let limit = filter.limit.unwrap_or(LIMIT).min(LIMIT_MAX);
    let closed = fitting.take(limit).map(ClosedJson::new).collect();
    let body = serde_json::to_string(&Closed { total_closed: ledger.total(), closed })
        .expect("plain data with text keys is always JSON");
    Response::json(200, body)
}

impl Filter {
    fn read(query: &str) -> Result<Filter, &'static str> {
        let mut filter = Filter::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decoded(value).ok_or("a value in the query is not UTF-8")?;
            match name {
                "limit" => {
                    filter.limit = Some(value.parse().map_err(|_| "limit is not a number")?);
                }
                "id" => filter.id = Some(value),
                "task" => filter.task = Some(value),
                "client" => filter.client = Some(value),
                "route" => filter.route = Some(value),
                "reason" => filter.reason = Some(value),
                _ => return Err("the filters are limit, id, task, client, route and reason"),
            }
        }
        Ok(filter)
    }

    fn fits(&self, one: &ClosedConnection) -> bool {
        let is = |wanted: &Option<String>, text: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| text == Some(wanted))
        };
        self.id.as_ref().is_none_or(|wanted| *wanted == one.id())
            && is(&self.task, one.task_id.as_deref())
            && is(&self.route, Some(&one.route))
            && is(&self.reason, Some(one.reason))
            && self.client.as_deref().is_none_or(|wanted| is_client(one.client, wanted))
    }
}

fn is_client(client: Client, wanted: &str) -> bool {
    client.to_string() == wanted || client.ip().is_some_and(|ip| ip.to_string() == wanted)
}

#[derive(Serialize)]
struct Idle {
    client: Option<f64>,
    backend: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct ClosedJson<'a> {
    id: String,
    route: &'a str,
    task_id: Option<&'a str>,
    client: String,
    backend: Option<&'a str>,
    opened: String,
    closed: String,
    duration_seconds: f64,
    phase: &'static str,
    ended_by: &'static str,
    reason: &'static str,
    failure: bool,
    client_code: Option<u16>,
    backend_code: Option<u16>,
    client_close: &'static str,
    backend_close: &'static str,
    idle_seconds: Idle,
    from_client: Count,
    to_client: Count,
    pings_sent: u16,
    pongs_received: u16,
    sentence: String,
}

impl<'a> ClosedJson<'a> {
    pub(super) fn new(one: &'a ClosedConnection) -> ClosedJson<'a> {
        ClosedJson {
            id: one.id(),
            route: &one.route,
            task_id: one.task_id.as_deref(),
            client: one.client.to_string(),
            backend: one.backend.as_deref(),
            opened: rfc3339(one.opened()),
            closed: rfc3339(one.closed),
            duration_seconds: seconds(one.duration),
            phase: one.phase,
            ended_by: one.ended_by,
            reason: one.reason,
            failure: one.is_failure,
            client_code: one.client_code,
            backend_code: one.backend_code,
            client_close: one.client_close,
            backend_close: one.backend_close,
            idle_seconds: Idle {
                client: one.client_idle.map(seconds),
                backend: one.backend_idle.map(seconds),
            },
            from_client: Count::of(one.traffic.from_client),
            to_client: Count::of(one.traffic.to_client),
            pings_sent: one.pings_sent,
            pongs_received: one.pongs_received,
            sentence: one.sentence.to_string(),
        }
    }
}

/// To a millisecond.
fn seconds(time: Duration) -> f64 {
    time.as_millis() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::tests::text;
    use super::*;
    use crate::base::budget::Budget;
    use crate::service::ledger::tests::closed as one;
    use serde_json::Value;

    fn ledger() -> Ledger {
        let mut ledger = Ledger::new(&Budget::default());
        ledger.push(one(1));
        let task_id = Some("7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111".to_owned());
        let client = Client::Peer(
            "[2001:db8::1]:7".parse::<std::net::SocketAddr>().expect("an address").into(),
        );
        let reason = "task_timeout";
        ledger.push(ClosedConnection { route: "output".into(), task_id, client, reason, ..one(2) });
        ledger
    }

    #[test]
    fn every_field_is_there_in_order() {
        let mut ledger = Ledger::new(&Budget::default());
        ledger.push(one(1));
        let expected = concat!(
            r#"{"total_closed":1,"closed":[{"id":"input_1","route":"input","task_id":null,"#,
            r#""client":"192.0.2.7:5000","backend":"ws://a/","opened":"1970-01-01T00:00:00.000Z","#,
            r#""closed":"1970-01-01T00:00:01.204Z","duration_seconds":1.204,"phase":"relay","#,
            r#""ended_by":"client","reason":"client_closed","failure":false,"#,
            r#""client_code":1000,"backend_code":1000,"client_close":"sent","backend_close":"received","#,
            r#""idle_seconds":{"client":0.2,"backend":null},"#,
            r#""from_client":{"frames":0,"bytes":0},"to_client":{"frames":0,"bytes":0},"#,
            r#""pings_sent":1,"pongs_received":1,"#,
            r#""sentence":"The client closed the connection with code 1000."}]}"#,
        );
        assert_eq!(text(&closed(&ledger, "")), expected);
    }

    #[test]
    fn filters_choose_and_the_newest_comes_first() {
        let ledger = ledger();
        for (query, ids) in [
            ("", vec!["output_2", "input_1"]),
            ("limit=1", vec!["output_2"]),
            ("limit=100000", vec!["output_2", "input_1"]),
            ("limit=0", vec![]),
            ("id=input_1", vec!["input_1"]),
            ("id=input", vec![]),
            ("task=7d2b1a52-93a2-4c44-9a94-6a2a4a6cf111", vec!["output_2"]),
            ("client=192.0.2.7", vec!["input_1"]),
            ("client=192.0.2.7%3A5000", vec!["input_1"]),
            ("client=192.0.2", vec![]),
            ("client=2001:db8::1", vec!["output_2"]),
            ("client=[2001:db8::1]:7", vec!["output_2"]),
            ("route=input", vec!["input_1"]),
            ("reason=task_timeout", vec!["output_2"]),
            ("reason=task_timeout&route=input", vec![]),
        ] {
            let answer = closed(&ledger, query);
            let body: Value = serde_json::from_str(text(&answer)).expect("JSON");
            let found: Vec<_> = body["closed"].as_array().expect("a list").iter().collect();
            let found: Vec<_> = found.iter().map(|one| one["id"].as_str().unwrap()).collect();
            assert_eq!((found, &body["total_closed"]), (ids, &Value::from(2)), "{query}");
        }
        for query in ["limit=x", "limit=-1", "resaon=done", "id=%ff"] {
            assert_eq!(closed(&ledger, query).status, 400, "{query}");
        }
    }
}
