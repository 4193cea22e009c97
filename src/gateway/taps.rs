//! Hands out what happened on connections in a turn to those that follow live frames.

use super::Gateway;
use super::sweeps::Errand;
use crate::service::report::rfc3339;
use crate::service::taps::TapSubject;
use crate::session::tap::{self, Noted};
use serde_json::{Map, Value};

impl Gateway {
    /// At the end of the turn, before sessions that ended are freed.
    #[cold]
    pub(super) fn hand_out_noted(&mut self) {
        tap::begin();
        tap::set_payload(self.cx.shows_payload());
        if !std::mem::replace(&mut self.is_tapped, true) {
            // Connections that remember their frames do not report them.
            self.sweep(Errand::Reload);
        }
        let (noted, lost) = tap::take();
        if noted.is_empty() {
            return;
        }
        let time = rfc3339(self.cx.wall.at(self.cx.now));
        for Noted { session, id, route, client, what, payload } in noted {
            let task = session.and_then(|session| self.session(session)?.task_id());
            let mut line = Map::new();
            line.insert("time".into(), time.as_str().into());
            line.insert("id".into(), id.as_str().into());
            line.extend(what);
            let (route, task) = (route.as_deref(), task.as_deref());
            let subject = TapSubject { id: &id, route, task, client };
            let data = Value::Object(line.clone()).to_string();
            let full = payload.map(|(name, text)| {
                line.insert(name.into(), text.into());
                Value::Object(line).to_string()
            });
            let full = full.filter(|_| self.cx.settings.allow_tap_payload);
            self.cx.taps.push(&subject, &data, full.as_deref());
        }
        self.cx.taps.lose(lost);
        self.wake_followers();
    }

    /// Those for whom nothing waits find that out.
    pub(super) fn wake_followers(&mut self) {
        for id in self.cx.taps.followers().collect::<Vec<_>>() {
            if self.session(id).is_some_and(|session| !session.is_closed()) {
                self.go_on_later(id.key as usize);
            }
        }
    }
}
