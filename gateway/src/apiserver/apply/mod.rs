//! Server-side apply and `metadata.managedFields`. `set`, `typed` and `managers` are pure; here they meet requests.

mod managers;
mod set;
mod typed;

use super::negotiation::decode_as;
use super::options::MAX_MANAGER;
use super::{Call, fields, object, schema};
use crate::kinds::api_version;
use hanse_api::Timestamp;
use hanse_api::status::{Cause, Details, Reason, Status};
use http::header::USER_AGENT;
pub(crate) use managers::Managed;
use managers::{Conflict, Manager, Operation, Rules};
use serde_json::{Value, json};
use set::Set;
use std::collections::BTreeMap;

/// Media type of an apply.
pub(crate) const MEDIA: &str = "application/apply-patch+yaml";
/// Most conflicts that are named.
const MAX_CONFLICTS: usize = 200;

/// An apply, read.
#[derive(Debug)]
pub(crate) struct Apply {
    pub(crate) config: Value,
    force: bool,
    manager: Manager,
}

/// Reads an apply from its body. Gives what the caller is to be warned of.
pub(crate) fn read(call: &Call<'_>, body: &[u8]) -> Result<(Apply, Vec<String>), Box<Status>> {
    let (mut config, warnings) = fields::check(call, decode_as(MEDIA, body)?, Vec::new())?;
    super::drop_nulls(&mut config);
    let bad = |message: &str| Err(Box::new(Status::new(Reason::BadRequest, message)));
    if config["apiVersion"].as_str().is_none_or(str::is_empty) || config["kind"].as_str().is_none_or(str::is_empty) {
        return bad("apiVersion and kind must be set in an object to be applied");
    }
    super::create::check_type(call, &config)?;
    if config["metadata"].get("managedFields").is_some() {
        return bad("metadata.managedFields must be nil");
    }
    let node = &schema::of(call.kind).root;
    if let Some(path) = typed::duplicate_item(node, &config) {
        return bad(&format!("duplicate entries for key {path}"));
    }
    let manager = manager(call, Operation::Apply);
    let force = call.query.flag("force");
    Ok((Apply { config, force, manager }, warnings))
}

/// Who writes: `fieldManager`, or else the program that the caller says he is.
fn manager(call: &Call<'_>, operation: Operation) -> Manager {
    let given = call.query.first("fieldManager").unwrap_or_default();
    let agent = || {
        let text = call.headers.get(USER_AGENT).and_then(|v| v.to_str().ok());
        let program = text.and_then(|t| t.split('/').next()).unwrap_or_default();
        program.chars().take(MAX_MANAGER).collect::<String>()
    };
    let name = if given.is_empty() { agent() } else { given.to_owned() };
    Manager {
        operation,
        name: if name.is_empty() { "unknown".into() } else { name },
        version: api_version(call.kind.names()),
        subresource: call.info.subresource.clone(),
    }
}

fn rules(call: &Call<'_>, now: Timestamp) -> Rules<'static> {
    let ignored = if call.status() {
        // Of metadata only what the status endpoint writes by itself may change, which nobody manages.
        Set::of(&[&["metadata"], &["spec"]])
    } else if call.kind.has_status() {
        Set::of(&[&["status"]])
    } else {
        Set::default()
    };
    Rules {
        node: &schema::of(call.kind).root,
        ignored,
        now,
    }
}

/// The object without its managers.
fn bare(object: &Value) -> Value {
    let mut bare = object.clone();
    if bare.get("metadata").is_some() {
        object::meta_mut(&mut bare).remove("managedFields");
    }
    bare
}

fn entries(object: &Value) -> &Value {
    &object["metadata"]["managedFields"]
}

/// Managers that a write starts from: those that its author sends, or else those of the object. One empty entry resets
/// them.
pub(crate) fn base(live: &Value, sent: &Value) -> Managed {
    if *entries(sent) == json!([{}]) {
        return Managed::default();
    }
    let sent = Managed::decode(entries(sent)).filter(|m| !m.is_empty());
    sent.or_else(|| Managed::decode(entries(live))).unwrap_or_default()
}

/// Enters into `new` who manages what after a plain write.
pub(crate) fn track(
    call: &Call<'_>,
    base: Managed,
    live: Option<&Value>,
    new: &mut Value,
    now: Timestamp,
) -> Result<(), Box<Status>> {
    let tracked = match live {
        // What nobody managed before stays so until the first apply.
        Some(_) if base.is_empty() => base,
        Some(live) => base.updated(
            &rules(call, now),
            &bare(live),
            &bare(new),
            &manager(call, Operation::Update),
        ),
        None => base.updated(
            &rules(call, now),
            &json!({}),
            &bare(new),
            &manager(call, Operation::Update),
        ),
    };
    enter(live, new, &tracked);
    Ok(())
}

/// Writes the managers into an object; the old entries where nothing but times differs.
pub(crate) fn enter(live: Option<&Value>, new: &mut Value, managed: &Managed) {
    let old = live.map(entries).filter(|old| !old.is_null());
    let same = |old: &&Value| {
        live.map(bare) == Some(bare(new)) && Managed::decode(old).is_some_and(|had| had.same_fields(managed))
    };
    let entries = match old.filter(same) {
        Some(old) => old.clone(),
        None => managed.encode(),
    };
    let meta = object::meta_mut(new);
    if managed.is_empty() {
        meta.remove("managedFields");
    } else {
        meta.insert("managedFields".into(), entries);
    }
}

/// What an apply makes of `live`, and who manages what then.
pub(crate) fn applied(
    call: &Call<'_>,
    apply: &Apply,
    live: &Value,
    now: Timestamp,
) -> Result<(Value, Managed), Box<Status>> {
    let managed = Managed::decode(entries(live)).unwrap_or_default();
    let plain = bare(live);
    let outcome = managed.applied(&rules(call, now), &plain, &apply.config, &apply.manager, apply.force);
    let (new, managed) = outcome.map_err(|conflicts| conflicting(&conflicts))?;
    Ok((new.unwrap_or(plain), managed))
}

/// Who manages what of an object that an apply makes.
pub(crate) fn made(call: &Call<'_>, apply: &Apply, now: Timestamp) -> Managed {
    let nothing = json!({});
    let outcome = Managed::default().applied(&rules(call, now), &nothing, &apply.config, &apply.manager, true);
    outcome.map(|(_, managed)| managed).unwrap_or_default()
}

/// 409 in the words of Kubernetes.
fn conflicting(conflicts: &[Conflict]) -> Box<Status> {
    let cause = |conflict: &Conflict| Cause {
        reason: "FieldManagerConflict".into(),
        message: format!("conflict with {}", conflict.manager),
        field: conflict.path.clone(),
    };
    let causes: Vec<Cause> = conflicts.iter().take(MAX_CONFLICTS).map(cause).collect();
    let message = if let [one] = conflicts {
        format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager, one.path
        )
    } else {
        let mut by_manager: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for conflict in conflicts.iter().take(MAX_CONFLICTS) {
            by_manager
                .entry(conflict.manager.to_string())
                .or_default()
                .push(&conflict.path);
        }
        let lines: Vec<String> = by_manager
            .into_iter()
            .map(|(manager, paths)| format!("conflicts with {manager}:\n- {}", paths.join("\n- ")))
            .collect();
        format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
    };
    let details = Details {
        causes,
        ..Details::default()
    };
    Box::new(Status::new(Reason::Conflict, message).with_details(details))
}
