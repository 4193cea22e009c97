//! What a session holds in memory: charged after each step, and given back when it is ended for it.

use super::{
    CloseReason, Closing, Context, Detail, Last, LastFrames, Phase, Session, State, in_phase,
};
use crate::net::{Side, memory};

/// How much memory sessions, results and responses may hold together, socket buffers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// Half of what this machine or its cgroup has.
    Auto,
    /// This many bytes.
    Bytes(u64),
    /// Any amount.
    Unlimited,
}

impl MemoryLimit {
    /// The limit in bytes, if there is one. `Auto` reads what the system says at this moment.
    pub fn bytes(self) -> Option<usize> {
        let bytes = match self {
            MemoryLimit::Auto => memory::available()? / 2,
            MemoryLimit::Bytes(bytes) => bytes,
            MemoryLimit::Unlimited => return None,
        };
        Some(usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

/// Socket buffers are counted in pages of this many bytes.
const PAGE_BYTES: usize = 4096;

impl Session {
    pub(super) fn recharge(&mut self, cx: &Context) {
        let own = in_phase!(&self.phase, it => it.own_bytes(), closed => 0);
        let own = u32::try_from(own).unwrap_or(u32::MAX);
        cx.budget.recount(self.own_bytes as usize, own as usize);
        self.own_bytes = own;
    }

    /// Charges what the kernel holds in its sockets' buffers, and keeps it from growing beyond
    /// `bytes_max` a buffer.
    pub fn count_sockets(&mut self, bytes_max: usize, cx: &Context) {
        let upstream = in_phase!(&mut self.phase, it => it.upstream(), closed => None);
        let conns = [Some(&mut self.downstream), upstream];
        let mut pages = 0;
        for conn in conns.into_iter().flatten() {
            let bytes = conn.kernel_bytes();
            if bytes > bytes_max {
                conn.limit_buffers(bytes_max);
            }
            pages += bytes.div_ceil(PAGE_BYTES);
        }
        self.set_kernel_pages(u16::try_from(pages).unwrap_or(u16::MAX), cx);
    }

    pub(super) fn set_kernel_pages(&mut self, pages: u16, cx: &Context) {
        let bytes = |pages: u16| pages as usize * PAGE_BYTES;
        cx.budget.recount(bytes(self.kernel_pages), bytes(pages));
        self.kernel_pages = pages;
    }

    /// Memory that its end would free, in bytes.
    pub fn memory(&self) -> usize {
        let charged = in_phase!(&self.phase, it => it.charged_bytes(), closed => 0);
        self.own_bytes as usize + charged + self.kernel_pages as usize * PAGE_BYTES
    }

    /// Ends it because memory is short. The client gets a Close frame unless it is within another
    /// frame, and so does the backend of a relay.
    pub fn shed(&mut self, cx: &mut Context) {
        let reason = CloseReason::OverBudget;
        let farewell = in_phase!(&self.phase, it => it.farewell(reason), closed => return);
        in_phase!(&mut self.phase, it => it.leave_backend(reason, cx), closed => return);
        let was_lingering = matches!(self.phase, Phase::Linger(_));
        let phase = std::mem::replace(&mut self.phase, Phase::Closed);
        let mut ended = in_phase!(phase, it => it.release(&self.who, cx), closed => return);
        ended.set_reason(reason);
        let code = || Closing::Received(Some(reason.close_code(Side::Downstream)));
        // On a relayed route only the frames of the sides are counted.
        let is_served = matches!(ended.detail, Detail::Output { .. } | Detail::Ingest { .. });
        let is_websocket = is_served || matches!(ended.detail, Detail::Relay);
        ended.client_close =
            farewell.as_ref().filter(|_| is_websocket).map_or(Closing::None, |_| code());
        let frames = u64::from(is_served);
        ended.last = farewell.map_or(Last::Dropped, |bytes| {
            Last::Frames(LastFrames { bytes, frames, ..LastFrames::default() })
        });
        // What the kernel has still to send would stay in memory for as long as the client is slow.
        self.downstream.discard_on_close();
        if was_lingering {
            ended.record(&self.who, cx); // its end has been counted
        } else {
            self.end(ended, cx);
        }
        self.recharge(cx);
        self.set_kernel_pages(0, cx);
    }
}
