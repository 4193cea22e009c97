//! The JSON schema of the configuration file, with which editors complete and check it.
//!
//! It is made from the table of keys, and its descriptions are the comments of `config.toml`.
//! `contrib/config.schema.json` is the copy that editors read; a test compares the two. What only
//! the program can check (addresses, names in paths, files) is not in it.

use serde_json::{Map, Value, json};

use super::keys::SECTIONS;
use super::kind::KeyKind;
use super::reference::{Entry, entries};
use super::routes::{ROUTE_KEYS, SERVED, TARGETS};
use super::settings::Config;

/// As durations are read.
const TIME: &str = "^ *([0-9]+ *(ms|s|m|h)|0+) *$";

/// As sizes are read.
const SIZE: &str = "^ *[0-9]+ *([bB]|[kKmMgG][iI]?[bB]|[tT][iI][bB])? *$";

/// The schema as JSON, draft 7.
pub fn schema() -> String {
    let entries = entries();
    let defaults = Config::default();
    let mut properties = Map::new();
    for section in SECTIONS {
        if section.name == "output" {
            properties.insert("route".into(), routes(&entries));
        }
        let mut keys = Map::new();
        for key in section.keys {
            let mut value = of_kind(&key.kind);
            describe(&mut value, &entries, section.name, key.name);
            // What is shown of a value is also JSON, except for a table that is not empty.
            if let Ok(default) = serde_json::from_str::<Value>(&key.kind.show(&defaults)) {
                value.insert("default".into(), default);
            }
            keys.insert(key.name.into(), value.into());
        }
        let mut table = object(keys);
        describe(&mut table, &entries, section.name, "");
        properties.insert(section.name.into(), table.into());
    }
    let mut top = Map::new();
    top.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
    top.insert("title".into(), "The configuration of aivtuber-gateway".into());
    top.append(&mut object(properties));
    format!("{:#}\n", Value::from(top))
}

fn of_kind(kind: &KeyKind) -> Map<String, Value> {
    let size = |least: u64, most: u64| {
        json!([
            { "type": "string", "pattern": SIZE },
            { "type": "integer", "minimum": least, "maximum": most }
        ])
    };
    map(match kind {
        KeyKind::Time { .. } => json!({ "type": "string", "pattern": TIME }),
        KeyKind::Size { allows_zero, range, .. } => {
            let least = if *allows_zero { 0 } else { *range.start() };
            json!({ "anyOf": size(least, *range.end()) })
        }
        KeyKind::Memory { range, .. } => {
            let mut forms = vec![json!({ "const": "auto" })];
            forms.extend(size(0, *range.end()).as_array().into_iter().flatten().cloned());
            json!({ "anyOf": forms })
        }
        KeyKind::Count { range, .. } => {
            json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() })
        }
        KeyKind::Flag { .. } => json!({ "type": "boolean" }),
        KeyKind::FlagOrPort { .. } => json!({ "anyOf": [
            { "type": "boolean" },
            { "type": "integer", "minimum": 1, "maximum": 65_535 },
        ] }),
        KeyKind::Text { .. } => json!({ "type": "string" }),
        KeyKind::Word { words, .. } => json!({ "enum": words() }),
        KeyKind::Map { .. } => {
            json!({ "type": "object", "additionalProperties": { "type": "string" } })
        }
        KeyKind::List { .. } => text_or_list(),
    })
}

fn text_or_list() -> Value {
    json!({
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }]
    })
}

fn routes(entries: &[Entry]) -> Value {
    let mut keys = Map::new();
    for key in ROUTE_KEYS {
        let mut value = map(match key {
            "name" => json!({ "type": "string", "pattern": "^[a-z0-9_-]{1,64}$" }),
            "path" => json!({ "type": "string", "pattern": "^/" }),
            "backend" => text_or_list(),
            "serve" => json!({ "enum": SERVED }),
            "insecure" => json!({ "type": "boolean" }),
            _ => json!({ "type": "string" }),
        });
        describe(&mut value, entries, "route", key);
        keys.insert(key.into(), value.into());
    }
    let mut route = object(keys);
    route.insert("required".into(), json!(["name", "path"]));
    let one_of: Vec<_> = TARGETS.iter().map(|key| json!({ "required": [key] })).collect();
    route.insert("oneOf".into(), one_of.into());
    let mut list = map(json!({ "type": "array", "items": route }));
    describe(&mut list, entries, "route", "");
    list.into()
}

/// A table without other keys than these.
fn object(properties: Map<String, Value>) -> Map<String, Value> {
    map(json!({ "type": "object", "additionalProperties": false, "properties": properties }))
}

fn describe(value: &mut Map<String, Value>, entries: &[Entry], section: &str, key: &str) {
    if let Some(entry) = entries.iter().find(|entry| entry.section == section && entry.key == key) {
        value.insert("description".into(), entry.doc.replace('\n', " ").into());
    }
}

fn map(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
