//! The input protocol, without its socket: one client's upload, message by message.

use super::TEXT_BYTES_MAX;
use serde_json::{Value, json};

/// One client's upload. The messages are described in [`crate::demo`].
pub struct Upload {
    pub task_id: String,
    expects: Expects,
    text: Text,
}

/// The next message that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    Announcement,
    Bytes,
    /// The text is complete; a connection has one task.
    Nothing,
}

/// The pieces so far.
enum Text {
    Growing(Vec<u8>),
    /// It is too long; further pieces are dropped until it ends.
    TooLong,
}

/// What follows a message.
#[derive(Debug, PartialEq, Eq)]
pub enum Reaction {
    /// No message has come.
    None,
    /// Accepted, with no reply.
    Accept,
    Reply(String),
    /// The text is complete: send the reply, then answer the text.
    Queue {
        reply: String,
        text: String,
    },
}

impl Upload {
    pub fn new(task_id: &str) -> Upload {
        Upload {
            task_id: task_id.to_owned(),
            expects: Expects::Announcement,
            text: Text::Growing(Vec::new()),
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
            _ if self.expects == Expects::Nothing => self
                .refuse("the text of this task is complete: open a new connection for another one"),
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
            Expects::Nothing => {
                return self.refuse(
                    "the text of this task is complete: open a new connection for another one",
                );
            }
        }
        match &mut self.text {
            Text::Growing(text) if text.len() + piece.len() <= TEXT_BYTES_MAX => {
                text.extend_from_slice(piece);
                Reaction::Accept
            }
            Text::Growing(_) => {
                self.text = Text::TooLong;
                self.refuse(&format!("the text is longer than {TEXT_BYTES_MAX} bytes"))
            }
            Text::TooLong => Reaction::Accept,
        }
    }

    /// Pieces arrive in order, so `chunk_id` is only checked to be a number.
    fn handle_announcement(&mut self, message: &Value) -> Reaction {
        if message.get("type").and_then(Value::as_str) != Some("text") {
            return self.refuse("`type` must be \"text\": this stand-in only reads");
        }
        if message.get("chunk_id").and_then(Value::as_u64).is_none() {
            return self.refuse("`chunk_id` must be a whole number from 0");
        }
        self.expects = Expects::Bytes;
        Reaction::Accept
    }

    fn complete(&mut self) -> Reaction {
        match std::mem::replace(&mut self.text, Text::Growing(Vec::new())) {
            Text::TooLong => self.refuse("the text was too long: upload a shorter one"),
            Text::Growing(text) => match String::from_utf8(text) {
                Ok(text) if text.is_empty() => self.refuse("nothing was uploaded"),
                Err(_) => self.refuse("the text is not UTF-8: upload it again"),
                Ok(text) => {
                    self.expects = Expects::Nothing;
                    let task_id = &self.task_id;
                    let reply = json!({"type": "system", "action": "upload_processed", "status": "queued", "task_id": task_id});
                    Reaction::Queue { reply: reply.to_string(), text }
                }
            },
        }
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

    pub const COMPLETE: &str = r#"{"action":"upload_complete"}"#;

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
            r#"{"type":"audio","action":"data_chunk","chunk_id":0}"#,
        ] {
            refused(upload.handle_text(message), "`type` must be");
        }
        for chunk_id in ["-1", "1.5", r#""0""#, "null"] {
            let message =
                format!(r#"{{"type":"text","action":"data_chunk","chunk_id":{chunk_id}}}"#);
            refused(upload.handle_text(&message), "`chunk_id` must be");
        }
        refused(upload.handle_bytes(b"out of the blue"), "must be announced");
        refused(upload.handle_text(COMPLETE), "nothing was uploaded");

        assert_eq!(upload.handle_text(&announcement(0)), Reaction::Accept);
        refused(upload.handle_text(&announcement(1)), "must come first");
        refused(upload.handle_text(COMPLETE), "must come first");
        assert_eq!(upload.handle_bytes(b"\xff"), Reaction::Accept);
        refused(upload.handle_text(COMPLETE), "not UTF-8");

        assert_eq!(upload.handle_text(&announcement(0)), Reaction::Accept);
        assert_eq!(upload.handle_bytes(b"good"), Reaction::Accept);
        assert!(
            matches!(upload.handle_text(COMPLETE), Reaction::Queue { text, .. } if text == "good")
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
            matches!(upload.handle_text(COMPLETE), Reaction::Reply(text) if text.contains("too long"))
        );
        for _ in 0..2 {
            upload.handle_text(&announcement(0));
            upload.handle_bytes(&piece);
        }
        assert!(
            matches!(upload.handle_text(COMPLETE), Reaction::Queue { text, .. } if text.len() == TEXT_BYTES_MAX)
        );
    }
}
