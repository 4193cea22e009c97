//! The input protocol, without its socket: one client's upload, message by message.

use super::{RECORDING_BYTES_MAX, TEXT_BYTES_MAX};
use serde_json::{Value, json};

/// One client's upload. The messages are described in [`crate::demo`].
pub struct Upload {
    pub task_id: String,
    expects: Expects,
    content: UploadContent,
}

/// What was uploaded.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    Text(String),
    Recording(Vec<u8>),
}

/// What the pieces are, by their announcements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InputKind {
    Text,
    Recording,
}

impl InputKind {
    fn name(self) -> &'static str {
        match self {
            InputKind::Text => "text",
            InputKind::Recording => "recording",
        }
    }

    /// Bytes of one upload, all pieces together.
    fn bytes_max(self) -> usize {
        match self {
            InputKind::Text => TEXT_BYTES_MAX,
            InputKind::Recording => RECORDING_BYTES_MAX,
        }
    }
}

/// The next message that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Announcement,
    Bytes,
    /// The upload is complete; a connection has one task.
    Nothing,
}

/// The pieces so far.
enum UploadContent {
    /// No piece has been announced.
    Empty,
    Growing(InputKind, Vec<u8>),
    /// It is too long; further pieces are dropped until it ends.
    TooLong(InputKind),
}

/// The error for messages that come when the upload is complete.
const COMPLETE: &str = "this upload is complete: open a new connection for another one";

/// What follows a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaction {
    /// No message has come.
    None,
    /// Accepted, with no reply.
    Accept,
    Reply(String),
    /// The upload is complete: send the reply, then answer it.
    Queue {
        reply: String,
        input: Input,
    },
}

impl Upload {
    pub fn new(task_id: &str) -> Upload {
        Upload {
            task_id: task_id.to_owned(),
            expects: Expects::Announcement,
            content: UploadContent::Empty,
        }
    }

    /// The first message to a client.
    pub fn greeting(&self) -> String {
        json!({"type": "system", "action": "task_id_assigned", "task_id": self.task_id}).to_string()
    }

    /// Takes a text message. One that is refused changes nothing.
    pub fn handle_text(&mut self, message: &str) -> Reaction {
        let message: Value = match serde_json::from_str(message) {
            Ok(message) => message,
            Err(why) => return self.refuse(&format!("this is not JSON: {why}")),
        };
        match message.get("action").and_then(Value::as_str) {
            _ if self.expects == Expects::Nothing => self.refuse(COMPLETE),
            Some("data_chunk" | "upload_complete") if self.expects == Expects::Bytes => {
                self.refuse("the announced piece must come first, as a binary message")
            }
            Some("data_chunk") => self.handle_announcement(&message),
            Some("upload_complete") => self.complete(),
            _ => self.refuse("`action` must be \"data_chunk\" or \"upload_complete\""),
        }
    }

    /// Takes a binary message: the piece that was announced.
    pub fn handle_bytes(&mut self, piece: &[u8]) -> Reaction {
        match self.expects {
            Expects::Bytes => self.expects = Expects::Announcement,
            Expects::Announcement => {
                let wanted = json!({"type": "text", "chunk_id": 0, "action": "data_chunk"});
                return self.refuse(&format!("a binary message must be announced by {wanted}"));
            }
            Expects::Nothing => return self.refuse(COMPLETE),
        }
        match &mut self.content {
            UploadContent::Growing(kind, bytes)
                if bytes.len() + piece.len() <= kind.bytes_max() =>
            {
                bytes.extend_from_slice(piece);
                Reaction::Accept
            }
            UploadContent::Growing(kind, _) => {
                let kind = *kind;
                self.content = UploadContent::TooLong(kind);
                let (name, max) = (kind.name(), kind.bytes_max());
                self.refuse(&format!("the {name} is longer than {max} bytes"))
            }
            UploadContent::TooLong(_) | UploadContent::Empty => Reaction::Accept,
        }
    }

    /// Pieces arrive in order, so `chunk_id` is only checked to be a number.
    fn handle_announcement(&mut self, message: &Value) -> Reaction {
        let kind = match message.get("type").and_then(Value::as_str) {
            Some("text") => InputKind::Text,
            Some("audio") => InputKind::Recording,
            _ => return self.refuse("`type` must be \"text\" or \"audio\""),
        };
        if message.get("chunk_id").and_then(Value::as_u64).is_none() {
            return self.refuse("`chunk_id` must be a whole number from 0");
        }
        match self.content {
            UploadContent::Empty => self.content = UploadContent::Growing(kind, Vec::new()),
            UploadContent::Growing(begun, _) | UploadContent::TooLong(begun) if begun != kind => {
                return self.refuse("an upload is either a text or a recording");
            }
            UploadContent::Growing(..) | UploadContent::TooLong(_) => {}
        }
        self.expects = Expects::Bytes;
        Reaction::Accept
    }

    fn complete(&mut self) -> Reaction {
        let input = match std::mem::replace(&mut self.content, UploadContent::Empty) {
            UploadContent::TooLong(kind) => {
                return self
                    .refuse(&format!("the {0} was too long: upload a shorter one", kind.name()));
            }
            UploadContent::Empty => return self.refuse("nothing was uploaded"),
            UploadContent::Growing(_, bytes) if bytes.is_empty() => {
                return self.refuse("nothing was uploaded");
            }
            UploadContent::Growing(InputKind::Recording, bytes) => Input::Recording(bytes),
            UploadContent::Growing(InputKind::Text, bytes) => match String::from_utf8(bytes) {
                Ok(text) => Input::Text(text),
                Err(_) => return self.refuse("the text is not UTF-8: upload it again"),
            },
        };
        self.expects = Expects::Nothing;
        let reply = json!({
            "type": "system", "action": "upload_processed", "status": "queued",
            "task_id": self.task_id,
        });
        Reaction::Queue { reply: reply.to_string(), input }
    }

    fn refuse(&self, why: &str) -> Reaction {
        Reaction::Reply(
            json!({"status": "error", "error": why, "task_id": self.task_id}).to_string(),
        )
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn announcement(chunk_id: u32) -> String {
        json!({"type": "text", "chunk_id": chunk_id, "action": "data_chunk"}).to_string()
    }

    pub const UPLOAD_COMPLETE: &str = r#"{"action":"upload_complete"}"#;

    #[test]
    fn bad_input_gets_an_error_and_the_upload_can_go_on() {
        let mut upload = Upload::new("t");
        let refused = |reaction: Reaction, why: &str| {
            let Reaction::Reply(text) = reaction else { panic!("{reaction:?} in place of {why}") };
            let error: Value = serde_json::from_str(&text).unwrap();
            assert_eq!((&error["status"], &error["task_id"]), (&json!("error"), &json!("t")));
            assert!(error["error"].as_str().unwrap().contains(why), "{error} lacks {why}");
        };
        refused(upload.handle_text("hello"), "not JSON");
        for message in ["[]", "17", "null", "{}", r#"{"action":"dance"}"#, r#"{"action":7}"#] {
            refused(upload.handle_text(message), "`action` must be");
        }
        for message in [
            r#"{"action":"data_chunk","chunk_id":0}"#,
            r#"{"type":"image","action":"data_chunk","chunk_id":0}"#,
        ] {
            refused(upload.handle_text(message), "`type` must be");
        }
        for chunk_id in ["-1", "1.5", r#""0""#, "null"] {
            let message =
                format!(r#"{{"type":"text","action":"data_chunk","chunk_id":{chunk_id}}}"#);
            refused(upload.handle_text(&message), "`chunk_id` must be");
        }
        refused(upload.handle_bytes(b"out of the blue"), "must be announced");
        refused(upload.handle_text(UPLOAD_COMPLETE), "nothing was uploaded");

        assert_eq!(upload.handle_text(&announcement(0)), Reaction::Accept);
        refused(upload.handle_text(&announcement(1)), "must come first");
        refused(upload.handle_text(UPLOAD_COMPLETE), "must come first");
        assert_eq!(upload.handle_bytes(b"\xff"), Reaction::Accept);
        refused(upload.handle_text(UPLOAD_COMPLETE), "not UTF-8");

        assert_eq!(upload.handle_text(&announcement(0)), Reaction::Accept);
        assert_eq!(upload.handle_bytes(b"good"), Reaction::Accept);
        assert!(
            matches!(upload.handle_text(UPLOAD_COMPLETE), Reaction::Queue { input: Input::Text(text), .. } if text == "good")
        );

        refused(upload.handle_text(&announcement(0)), "is complete");
        refused(upload.handle_bytes(b"more"), "is complete");
    }

    #[test]
    fn a_text_may_be_as_long_as_the_limit() {
        let piece = vec![b'a'; TEXT_BYTES_MAX / 2];
        let mut upload = Upload::new("t");
        for _ in 0..2 {
            upload.handle_text(&announcement(0));
            assert_eq!(upload.handle_bytes(&piece), Reaction::Accept);
        }
        upload.handle_text(&announcement(2));
        assert!(
            matches!(upload.handle_bytes(b"a"), Reaction::Reply(text) if text.contains("longer than 65536 bytes"))
        );
        upload.handle_text(&announcement(3));
        assert_eq!(upload.handle_bytes(b"the rest"), Reaction::Accept, "the error is sent once");
        assert!(
            matches!(upload.handle_text(UPLOAD_COMPLETE), Reaction::Reply(text) if text.contains("too long"))
        );
        for _ in 0..2 {
            upload.handle_text(&announcement(0));
            upload.handle_bytes(&piece);
        }
        assert!(
            matches!(upload.handle_text(UPLOAD_COMPLETE), Reaction::Queue { input: Input::Text(text), .. } if text.len() == TEXT_BYTES_MAX)
        );
    }

    #[test]
    fn a_recording_is_taken_byte_for_byte() {
        let announcement =
            |kind: &str| json!({"type": kind, "chunk_id": 0, "action": "data_chunk"}).to_string();
        let mut upload = Upload::new("t");
        for piece in [&b"\xff\xfe"[..], b"\0", &vec![7; TEXT_BYTES_MAX]] {
            assert_eq!(upload.handle_text(&announcement("audio")), Reaction::Accept);
            assert_eq!(upload.handle_bytes(piece), Reaction::Accept);
        }
        assert!(
            matches!(upload.handle_text(&announcement("text")), Reaction::Reply(why) if why.contains("either a text or a recording"))
        );
        let Reaction::Queue { input: Input::Recording(recording), .. } =
            upload.handle_text(UPLOAD_COMPLETE)
        else {
            panic!("not queued")
        };
        assert_eq!(recording.len(), TEXT_BYTES_MAX + 3);
        assert!(recording.starts_with(b"\xff\xfe\0\x07"));
    }

    #[test]
    fn a_recording_that_is_too_long_is_refused_once() {
        let mut upload = Upload::new("t");
        let piece = vec![0; RECORDING_BYTES_MAX / 16];
        let mut refused = 0;
        for chunk_id in 0..18 {
            let announcement =
                json!({"type": "audio", "chunk_id": chunk_id, "action": "data_chunk"});
            upload.handle_text(&announcement.to_string());
            refused += usize::from(upload.handle_bytes(&piece) != Reaction::Accept);
        }
        assert_eq!(refused, 1);
        assert!(
            matches!(upload.handle_text(UPLOAD_COMPLETE), Reaction::Reply(why) if why.contains("the recording was too long"))
        );
    }
}
