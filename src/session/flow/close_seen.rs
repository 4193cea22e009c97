//! The code in a Close frame that passes.

#![expect(clippy::indexing_slicing, reason = "two bytes are taken at most")]

/// What has been seen of its payload.
pub(super) struct CloseSeen {
    mask: [u8; 4],
    code: [u8; 2],
    seen: u8,
}

impl CloseSeen {
    /// Of a frame with this mask.
    pub(super) fn new(mask: [u8; 4]) -> CloseSeen {
        CloseSeen { mask, code: [0; 2], seen: 0 }
    }

    /// The next piece of its payload.
    pub(super) fn handle_payload(&mut self, piece: &[u8]) {
        for &byte in piece.iter().take(2 - self.seen as usize) {
            self.code[self.seen as usize] = byte ^ self.mask[self.seen as usize];
            self.seen += 1;
        }
    }

    /// The code, if there was one.
    pub(super) fn code(&self) -> Option<u16> {
        (self.seen == 2).then(|| u16::from_be_bytes(self.code))
    }
}
