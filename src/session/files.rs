//! A request for a file of a route with `files`: what of it the client gets.
//!
//! ```text
//! begin ── in memory ────────────────────────────────────────────► Respond
//!   └───── not in memory: Files waits for a background thread ───────┘
//! ```
//!
//! A file is opened anew for each request. A small one is read at once and leaves in one piece with
//! its head; of a larger one, [`Respond`] sends the bytes from the page cache.

use super::download::select;
use super::file_body::{FileAge, FileBody};
use super::jobs::{FileJob, Job};
use super::respond::{Asked, Respond};
use super::transcript::{Event, note};
use super::{CloseReason, Context, Drain, Ended, Identity, Phase, State, Step};
use crate::base::moment::Moment;
use crate::net::Conn;
use crate::net::files::OpenError;
use crate::net::files::assets::{Asset, AssetRequest, AssetRole, FoundAsset, INDEX, SMALL_BYTES};
use crate::proto::http::conditional::Conditions;
use crate::proto::http::negotiation::{Coding, accepts_html};
use crate::proto::http::{Content, RequestHead, Response};
use crate::proto::upgrade;
use crate::service::assets::{self, Files as Settings};
use std::sync::Arc;

/// What the content of a file depends on.
const VARY: &str = "Accept-Encoding";

/// What it depends on whether there is a page at all.
const VARY_FALLBACK: &str = "Accept, Accept-Encoding";

/// A file that a background thread opens.
pub struct Files {
    wanted: Wanted,
    found: Option<Result<FoundAsset, OpenError>>,
    has_to_leave: bool,
}

/// What is asked for, and how.
struct Wanted {
    /// The name of the file, relative to its folder.
    name: Box<str>,
    /// The path of the request, with its query.
    target: Box<str>,
    /// The name of the fallback, if the client takes that.
    fallback: Option<Arc<str>>,
    conditions: Conditions,
    asked: Asked,
}

impl Files {
    /// Answers a request for the file that `rest`, the end of its path, names.
    pub fn begin(
        head: &RequestHead,
        rest: &str,
        settings: &Settings,
        asked: Asked,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let refused = match assets::file_name(rest) {
            _ if !matches!(head.method, "GET" | "HEAD") => {
                Err(Response::error(405, "Method not allowed").with("Allow", "GET, HEAD"))
            }
            _ if upgrade::is_upgrade(head) => {
                Err(Response::error(404, "No WebSocket has this path"))
            }
            None => Err(Response::error(404, "Not found")),
            Some(_) if cx.budget.refuses(0) => {
                cx.stats.count_refused("over_budget");
                Err(Response::error(503, "Out of memory budget"))
            }
            Some(name) => Ok(name),
        };
        let name = match refused {
            Ok(name) => name,
            Err(response) => return Step::Next(Respond::answer(asked, response, who, cx)),
        };
        let fallback = settings.fallback.as_ref().filter(|_| accepts_html(&head.headers));
        let request = AssetRequest {
            folder: settings.folder.clone(),
            name: name.clone(),
            codings: Coding::accepted(&head.headers),
            fallback: fallback.cloned(),
        };
        let target = match head.query() {
            Some(query) => format!("{}?{query}", head.path()).into(),
            None => head.path().into(),
        };
        let (fallback, conditions) = (fallback.cloned(), Conditions::read(head));
        let wanted = Wanted { name, target, fallback, conditions, asked };
        match request.open_cached(&cx.local_devices, &mut cx.asset_folder) {
            Err(OpenError::WouldWait) => {
                cx.jobs.push_back(Job::File(FileJob::Find { request, owner: who.id() }));
                let files = Files { wanted, found: None, has_to_leave: false };
                Step::Wait(Phase::Files(Box::new(files)))
            }
            found => wanted.respond(found, who, cx),
        }
    }

    /// A background thread has looked for the file. Acted on by the next step.
    pub(super) fn handle_found(&mut self, found: Result<FoundAsset, OpenError>) {
        self.found = Some(found);
    }
}

impl Wanted {
    fn respond(
        self,
        found: Result<FoundAsset, OpenError>,
        who: &Identity,
        cx: &mut Context,
    ) -> Step {
        let response = match found {
            Ok(FoundAsset::File(asset)) => return self.respond_with(asset, who, cx),
            Ok(FoundAsset::Folder) => {
                Response::error(308, "This is a folder").with("Location", self.with_slash())
            }
            Err(error) => {
                let (status, why) = describe(error);
                note(who, || Event::NoFile { error, name: &self.name });
                Response::error(status, why)
            }
        };
        Step::Next(Respond::answer(self.asked, response, who, cx))
    }

    /// The target of the request with a slash behind its path.
    fn with_slash(&self) -> String {
        match self.target.split_once('?') {
            Some((path, query)) => format!("{path}/?{query}"),
            None => format!("{}/", self.target),
        }
    }

    fn respond_with(self, asset: Asset, who: &Identity, cx: &mut Context) -> Step {
        let Asset { file, coding, role } = asset;
        let (name, cache_control, vary) = match role {
            AssetRole::Named => (&*self.name, assets::cache_control(&self.name), VARY),
            AssetRole::Index => (INDEX, assets::REVALIDATE, VARY),
            AssetRole::Fallback => {
                (self.fallback.as_deref().unwrap_or(INDEX), assets::REVALIDATE, VARY_FALLBACK)
            }
        };
        let variant = coding.map_or("", Coding::word);
        let (mut response, range) = select(file.state(), variant, &self.conditions);
        if matches!(response.status, 200 | 206) {
            response.content_type = assets::content_type(name);
            if let Some(coding) = coding {
                response = response.with("Content-Encoding", coding.word());
            }
        }
        if matches!(response.status, 200 | 206 | 304) {
            response = response.with("Cache-Control", cache_control).with("Vary", vary);
        }
        note(who, || Event::Answer { status: response.status });
        let is_sent = matches!(response.content, Content::File(_)) && !self.asked.form.head_only;
        let is_small = range.end - range.start <= SMALL_BYTES;
        let bytes = if is_sent && is_small { file.read_cached(&range) } else { None };
        let body = match bytes {
            Some(bytes) => {
                response.content = Content::Bytes(bytes);
                None
            }
            None if is_sent => Some((FileBody::new(file, range, FileAge::Finished), self.name)),
            None => None,
        };
        Step::Next(Respond::answer_with_asset(self.asked, response, body, who, cx))
    }
}

/// The status and the error for a file that cannot be opened.
fn describe(error: OpenError) -> (u16, &'static str) {
    match error {
        OpenError::NotFound
        | OpenError::NoRoot(_)
        | OpenError::Forbidden
        | OpenError::NotRegular
        | OpenError::TooLarge => (404, "Not found"),
        OpenError::Unreadable(_) if error.is_denied() => (403, "This file may not be read"),
        OpenError::Shortage(_) => (503, "Out of file descriptors or memory"),
        OpenError::WouldWait | OpenError::Unreadable(_) => (500, "This file cannot be read"),
    }
}

impl State for Files {
    fn step(mut self: Box<Self>, _: &mut Conn, who: &mut Identity, cx: &mut Context) -> Step {
        if self.has_to_leave {
            return Step::End(Ended::http(CloseReason::Draining));
        }
        let Some(found) = self.found.take() else { return Step::Wait(Phase::Files(self)) };
        if let Ok(FoundAsset::File(asset)) = &found {
            cx.local_devices.note(asset.file.root());
        }
        self.wanted.respond(found, who, cx)
    }

    fn deadline(&self) -> Option<Moment> {
        None
    }

    /// A request that has begun still gets its response.
    fn drain(&mut self, drain: Drain, _: &Identity, _: &mut Context) {
        self.has_to_leave = drain == Drain::Leave;
    }

    fn reload(&mut self, _: Moment) {}

    fn word(&self) -> &'static str {
        "http"
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn own_bytes(&self) -> usize {
        let Wanted { name, target, asked, .. } = &self.wanted;
        size_of::<Files>() + name.len() + target.len() + asked.rest.capacity()
    }

    fn release(self: Box<Self>, _: &Identity, _: &mut Context) -> Box<Ended> {
        Ended::http(CloseReason::Stopped)
    }
}
