//! What clients, workers and gateways say about a task apart from its results: STOP, LEFT, BACK.

use serde::Deserialize;

use super::message::TaskId;

/// What a task's workers are to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ControlAction {
    /// The task is stopped.
    Stop,
    /// No client waits for the task any more, and it is not finished.
    Left,
    /// A client waits for it again.
    Back,
}

impl ControlAction {
    /// The word for messages.
    pub fn word(self) -> &'static str {
        match self {
            ControlAction::Stop => "STOP",
            ControlAction::Left => "LEFT",
            ControlAction::Back => "BACK",
        }
    }

    /// What is published on the task's control channel.
    pub fn payload(self) -> &'static [u8] {
        match self {
            ControlAction::Stop => br#"{"action":"STOP"}"#,
            ControlAction::Left => br#"{"action":"LEFT"}"#,
            ControlAction::Back => br#"{"action":"BACK"}"#,
        }
    }

    /// Reads a publication on a control channel. `None`: it says nothing that is known.
    pub fn read(payload: &[u8]) -> Option<ControlAction> {
        let control = serde_json::from_slice::<ControlMessage<'_>>(payload).ok()?;
        let all = [ControlAction::Stop, ControlAction::Left, ControlAction::Back];
        all.into_iter().find(|action| action.word() == control.action)
    }
}

/// The error for a request to stop a task that names none.
const NO_TASK: &str = "The body is not a JSON object with a sessionId or a task_id";

/// A client's message, or one on a control channel. Further fields are not looked at.
#[derive(Deserialize)]
struct ControlMessage<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    action: std::borrow::Cow<'a, str>,
}

/// The body of a request to stop a task.
#[derive(Deserialize)]
struct StopBody<'a> {
    #[serde(borrow, default, rename = "sessionId")]
    session_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow, default)]
    task_id: Option<std::borrow::Cow<'a, str>>,
}

/// Whether a client's message asks to stop its task: `{"type":"control","action":"STOP"}`.
pub fn is_clients_stop(message: &str) -> bool {
    // Nearly all that clients send is something else.
    message.contains("STOP") && {
        let control = serde_json::from_str::<ControlMessage<'_>>(message);
        control.is_ok_and(|it| it.action == "STOP" && it.kind.as_deref() == Some("control"))
    }
}

/// The task that a request asks to stop. `sessionId` counts, where both are given.
///
/// # Errors
/// The words for the client.
pub fn task_to_stop(body: &[u8]) -> Result<TaskId, &'static str> {
    let body = serde_json::from_slice::<StopBody<'_>>(body).map_err(|_| NO_TASK)?;
    let id = body.session_id.or(body.task_id).ok_or(NO_TASK)?;
    TaskId::parse(&id).ok_or(super::message::BAD_TASK_ID)
}

/// The message that tells a client that its task was stopped; close 1000 follows.
pub fn stop_ack(task: &TaskId) -> String {
    format!(r#"{{"type":"control","action":"STOP_ACK","task_id":"{task}"}}"#)
}

/// The message behind the last chunk of speech; `audio_complete` follows.
pub fn speech_end(task: &TaskId) -> String {
    format!(r#"{{"type":"control","action":"END","task_id":"{task}"}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    #[test]
    fn stop_is_told_from_other_messages() {
        for (message, expected) in [
            (r#"{"type":"control","action":"STOP"}"#, true),
            (r#" {"action" : "STOP", "type":"control", "n":[1]} "#, true),
            (r#"{"type":"CONTROL","action":"STOP"}"#, false),
            (r#"{"type":"control","action":"STOPPED"}"#, false),
            (r#"{"type":"control"}"#, false),
            (r#"{"action":"STOP"}"#, false),
            ("STOP", false),
            ("", false),
        ] {
            assert_eq!(is_clients_stop(message), expected, "{message}");
        }
    }

    #[test]
    fn publications_are_read_whatever_else_they_have() {
        for action in [ControlAction::Stop, ControlAction::Left, ControlAction::Back] {
            assert_eq!(ControlAction::read(action.payload()), Some(action));
        }
        let read = |payload: &str| ControlAction::read(payload.as_bytes());
        assert_eq!(read(r#"{"action":"STOP","by":"worker"}"#), Some(ControlAction::Stop));
        assert_eq!(read(r#"{"by":"proxy", "action":"LEFT"}"#), Some(ControlAction::Left));
        for unknown in [r#"{"action":"PAUSE"}"#, r#"{"action":"left"}"#, "{}", "STOP", ""] {
            assert_eq!(read(unknown), None, "{unknown}");
        }
        assert_eq!(ControlAction::read(b"\xff"), None);
    }

    #[test]
    fn request_names_its_task_in_either_field_and_any_form() {
        let read = |body: &str| task_to_stop(body.as_bytes()).map(|task| task.to_string());
        assert_eq!(read(&format!(r#"{{"sessionId":"{ID}"}}"#)).as_deref(), Ok(ID));
        assert_eq!(read(&format!(r#"{{"task_id":"{ID}","n":1}}"#)).as_deref(), Ok(ID));
        assert_eq!(read(&format!(r#"{{"task_id":"x","sessionId":"{ID}"}}"#)).as_deref(), Ok(ID));
        let upper = ID.to_uppercase();
        assert_eq!(read(&format!(r#"{{"task_id":"{upper}"}}"#)), Ok(upper));
        for bad in ["", "{}", "[]", "null", r#"{"task_id":null}"#, r#"{"task_id":7}"#] {
            assert_eq!(read(bad), Err(NO_TASK), "{bad}");
        }
        assert_eq!(read(r#"{"task_id":"7"}"#), Err(crate::proto::message::BAD_TASK_ID));
    }

    #[test]
    fn acknowledgement_has_the_id_as_the_client_wrote_it() {
        let task = TaskId::read(&ID.to_uppercase()).unwrap();
        let expected = format!(
            r#"{{"type":"control","action":"STOP_ACK","task_id":"{}"}}"#,
            ID.to_uppercase()
        );
        assert_eq!(stop_ack(&task), expected);
    }
}
