//! The probes of failed backends: begun when a rest is over, one for each backend.

use super::Gateway;
use crate::base::moment::Moment;
use crate::net::{Ready, Source};
use crate::session::Context;
use crate::session::probe::Probe;
use slab::Slab;

/// The probes under way.
#[derive(Default)]
pub struct Probes {
    running: Slab<Probe>,
    /// Probes since the start.
    count: u64,
}

impl Probes {
    /// An event of the socket of the probe in this slot. An event for a slot that has been freed,
    /// or taken by another probe meanwhile, is harmless: it says that a call may do something.
    pub fn handle_ready(&mut self, key: usize, ready: Ready, cx: &mut Context) {
        if let Some(probe) = self.running.get_mut(key) {
            probe.handle_ready(ready);
            self.step(key, cx);
        }
    }

    /// Begins the probes that are due, and goes on with those whose deadline has come. Begins none
    /// during a drain.
    #[inline]
    pub fn settle(&mut self, cx: &mut Context) {
        if !self.is_idle(cx) {
            self.settle_now(cx);
        }
    }

    /// Whether no backend is failed. Asked twice a turn, so it must cost next to nothing.
    #[inline]
    fn is_idle(&self, cx: &Context) -> bool {
        cx.upstreams.probe_at().is_none() && self.running.is_empty()
    }

    #[cold]
    fn settle_now(&mut self, cx: &mut Context) {
        while !cx.is_draining
            && let Some(backend) = cx.upstreams.due_probe(cx.now)
        {
            self.count += 1;
            let slot = self.running.vacant_entry();
            let key = slot.key();
            slot.insert(Probe::new(backend, self.count, Source::Probe(key), cx));
            self.step(key, cx);
        }
        let now = cx.now;
        self.step_where(cx, |probe| probe.deadline().is_some_and(|at| at <= now));
    }

    /// A name has been looked up.
    pub fn handle_addresses(&mut self, cx: &mut Context) {
        self.step_where(cx, Probe::is_looking_up);
    }

    /// When the next call of [`Probes::settle`] has something to do.
    #[inline]
    pub fn deadline(&self, cx: &Context) -> Option<Moment> {
        if self.is_idle(cx) { None } else { self.next(cx) }
    }

    #[cold]
    fn next(&self, cx: &Context) -> Option<Moment> {
        let due_at = if cx.is_draining { None } else { cx.upstreams.probe_at() };
        self.running.iter().filter_map(|(_, probe)| probe.deadline()).chain(due_at).min()
    }

    /// How many are under way.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Gives up all of them.
    pub fn stop(&mut self, cx: &mut Context) {
        for mut probe in self.running.drain() {
            if probe.backend().is_some_and(|backend| cx.upstreams.is_known(backend)) {
                probe.abandon(cx);
            }
        }
    }

    fn step_where(&mut self, cx: &mut Context, condition: impl Fn(&Probe) -> bool) {
        if self.running.is_empty() {
            return;
        }
        let keys: Vec<usize> =
            self.running.iter().filter(|(_, probe)| condition(probe)).map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| self.step(key, cx));
    }

    fn step(&mut self, key: usize, cx: &mut Context) {
        let Some(probe) = self.running.get_mut(key) else { return };
        // A reload may have removed the backend meanwhile.
        let is_known = probe.backend().is_none_or(|backend| cx.upstreams.is_known(backend));
        if is_known {
            probe.step(cx);
        }
        if !is_known || probe.is_over() {
            self.running.remove(key);
        }
    }
}

impl Gateway {
    /// Probes of backends under way.
    pub fn probe_count(&self) -> usize {
        self.probes.len()
    }
}
