//! `audit`: the trail of who did what. It is checked here, by what the server hands out: a server that lies about its own
//! trail would have to make up all of it, and not even then fit what an earlier check said.

use super::{print_document, tenant};
use crate::app::App;
use crate::audit_args::{AuditCommand, EventsArgs};
use crate::client::Management;
use crate::client::http::Call;
use crate::client::management::{path, refusal};
use crate::error::{Error, Kind, Result};
use crate::files;
use crate::output::Format;
use crate::output::table::Table;
use hanse_api::Timestamp;
use hanse_api::audit::{self, ANCHOR, HEAD, Head, Link, Verifier};
use hanse_api::kinds::{AUDIT_CHAINS, AUDIT_EVENTS};
use hanse_runtime::pki::sha256_hex;
use serde::Deserialize as _;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

/// Longest line of a watch or an export.
const MAX_LINE: usize = 1 << 20;
/// Times that `follow` asks anew without having heard anything between.
const TRIES: u32 = 10;

/// `audit ...`.
pub(crate) async fn audit(app: &App, command: &AuditCommand) -> Result<()> {
    match command {
        AuditCommand::List { events, limit, output } => list(app, events, *limit, output.output).await,
        AuditCommand::Follow { events, output } => follow(app, events, output.output).await,
        AuditCommand::Verify { file, known, output } => {
            let known = known.as_ref();
            let verified = match file {
                Some(file) => verify_file(file, known)?,
                None => verify(&app.management()?, known).await?,
            };
            show(app, &verified, output.output)
        }
        AuditCommand::Export { file } => export(app, file.as_deref()).await,
    }
}

/// Which events are wanted.
struct Filter<'a> {
    args: &'a EventsArgs,
    from: Option<Timestamp>,
}

impl<'a> Filter<'a> {
    fn new(app: &App, args: &'a EventsArgs) -> Self {
        let ago = |since: Duration| {
            let millis = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
            Timestamp::from_millis(app.clock.wall().as_millis().saturating_sub(millis))
        };
        Self {
            args,
            from: args.since.map(ago),
        }
    }

    fn wants(&self, object: &Value) -> bool {
        let event = &object["status"];
        let text = |pointer: &str| tenant::text(event, pointer);
        let is = |wanted: &Option<String>, have: &[&str]| wanted.as_deref().is_none_or(|wanted| have.contains(&wanted));
        let resource = resource(event);
        let new = self
            .from
            .is_none_or(|from| object["spec"]["at"].as_i64().unwrap_or(0) >= from.as_millis());
        let denied = event["annotations"]["authorization.k8s.io/decision"] == "forbid";
        new && is(
            &self.args.user,
            &[text("/user/username"), text("/impersonatedUser/username")],
        ) && is(&self.args.verb, &[text("/verb")])
            && is(&self.args.resource, &[text("/objectRef/resource"), &resource])
            && (denied || !self.args.denied)
    }
}

fn resource(event: &Value) -> String {
    joined(
        tenant::text(event, "/objectRef/resource"),
        tenant::text(event, "/objectRef/subresource"),
    )
}

fn joined(first: &str, second: &str) -> String {
    match (first, second) {
        ("", text) | (text, "") => text.to_owned(),
        (first, second) => format!("{first}/{second}"),
    }
}

async fn list(app: &App, args: &EventsArgs, limit: u32, format: Format) -> Result<()> {
    let (management, filter) = (app.management()?, Filter::new(app, args));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut found: VecDeque<Value> = VecDeque::new();
    let mut each = |page: &mut Value| {
        for object in items(page) {
            if filter.wants(&object) {
                found.push_back(object);
            }
            if found.len() > limit {
                found.pop_front();
            }
        }
        Ok(())
    };
    management.pages(&AUDIT_EVENTS, None, &mut each).await?;
    if print_document(&app.output, format, &found)? {
        return Ok(());
    }
    if found.is_empty() {
        app.output.note("no event of the audit trail is like that");
        return Ok(());
    }
    let wide = format == Format::Wide;
    let mut table = Table::new(heads(wide));
    for object in &found {
        table.row(row(object, wide));
    }
    app.output.print(&table.render(app.output.out))
}

fn items(page: &mut Value) -> Vec<Value> {
    match page.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    }
}

const fn heads(wide: bool) -> &'static [&'static str] {
    if wide {
        &[
            "TIME", "USER", "VERB", "RESOURCE", "OBJECT", "CODE", "SOURCE", "TARGET", "NUMBER", "TIMES", "REASON",
        ]
    } else {
        &["TIME", "USER", "VERB", "RESOURCE", "OBJECT", "CODE"]
    }
}

fn row(object: &Value, wide: bool) -> Vec<String> {
    let event = &object["status"];
    let text = |pointer: &str| tenant::text(event, pointer).to_owned();
    let note = |name: &str| tenant::text(&event["annotations"], &format!("/{}", name.replace('/', "~1"))).to_owned();
    let user = match tenant::text(event, "/impersonatedUser/username") {
        "" => text("/user/username"),
        other => format!("{} as {other}", text("/user/username")),
    };
    let mut row = vec![
        text("/stageTimestamp").get(..19).unwrap_or_default().replace('T', " "),
        user,
        text("/verb"),
        resource(event),
        joined(
            tenant::text(event, "/objectRef/namespace"),
            tenant::text(event, "/objectRef/name"),
        ),
        event["responseStatus"]["code"]
            .as_u64()
            .map(|code| code.to_string())
            .unwrap_or_default(),
    ];
    if wide {
        row.extend([
            text("/sourceIPs/0"),
            note("hanse.dev/target"),
            object["spec"]["sequence"]
                .as_u64()
                .map(|n| n.to_string())
                .unwrap_or_default(),
            note("hanse.dev/times"),
            note("authorization.k8s.io/reason"),
        ]);
    }
    row
}

/// The lines of a watch, put together from pieces.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    fn push(&mut self, piece: &[u8]) -> Result<Vec<Value>> {
        let mut out = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if self.rest.len() > MAX_LINE {
                return Err(Error::failed(format!(
                    "the server sent a line of more than {MAX_LINE} bytes"
                )));
            }
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                let event = serde_json::from_slice(&line);
                out.push(event.map_err(|e| Error::failed(format!("the server sent a line that is no event: {e}")))?);
            }
        }
        Ok(out)
    }
}

async fn follow(app: &App, args: &EventsArgs, format: Format) -> Result<()> {
    let (management, filter) = (app.management()?, Filter::new(app, args));
    let newest: Value = management
        .fetch(&format!("{}?limit=1", path(&AUDIT_EVENTS, None, None)))
        .await?;
    let mut seen = tenant::text(&newest, "/metadata/resourceVersion").to_owned();
    let (mut failed, mut before) = (0, String::new());
    loop {
        let query = format!("watch=true&allowWatchBookmarks=true&resourceVersion={seen}");
        let call = Call::get(format!("{}?{query}", path(&AUDIT_EVENTS, None, None)));
        let mut lines = Lines::default();
        let mut sink = |piece: &[u8]| {
            for change in lines.push(piece)? {
                let object = &change["object"];
                match change["type"].as_str() {
                    Some("ERROR") => return Err(Error::failed(tenant::text(object, "/message"))),
                    Some("ADDED") if filter.wants(object) => print_event(app, object, format)?,
                    _ => {}
                }
                tenant::text(object, "/metadata/resourceVersion").clone_into(&mut seen);
            }
            Ok(())
        };
        match management.http().download(&call, None, &mut sink).await {
            Ok(None) => {}
            Ok(Some(reply)) => return Err(refusal(&management.http().base().to_string(), &reply)),
            // Another server goes on where this one was; a watch that hears nothing at all ends.
            Err(error) if error.kind() == Kind::Unreachable && failed < TRIES => {
                failed = if before == seen { failed + 1 } else { 0 };
                app.clock.sleep(Duration::from_secs(1)).await;
            }
            Err(error) => return Err(error),
        }
        before.clone_from(&seen);
    }
}

fn print_event(app: &App, object: &Value, format: Format) -> Result<()> {
    match format {
        Format::Table | Format::Wide => app.output.line(&row(object, format == Format::Wide).join("   ")),
        Format::Json => app.output.line(&object.to_string()),
        Format::Yaml => print_document(&app.output, format, object).map(|_| ()),
    }
}

/// What a check found.
struct Verified {
    events: u64,
    first: u64,
    head: Head,
}

fn show(app: &App, verified: &Verified, format: Format) -> Result<()> {
    let Verified { events, first, head } = verified;
    let Head { sequence, hash, .. } = head;
    let document = json!({ "holds": true, "events": events, "first": first, "last": sequence, "hash": hash });
    if print_document(&app.output, format, &document)? {
        return Ok(());
    }
    if *events == 0 {
        return app.output.line("the trail holds: it has no events");
    }
    app.output
        .line(&format!("the trail holds: {events} events, {first} to {sequence}"))?;
    app.output.line(&format!("{sequence}:{hash}"))?;
    app.output
        .note("keep that line elsewhere: `hanse audit verify --known` checks later that the trail goes on from it");
    Ok(())
}

/// Follows a chain and looks for the place that is known.
struct Check<'a> {
    verifier: Verifier,
    first: u64,
    known: Option<&'a (u64, String)>,
    met: bool,
}

impl<'a> Check<'a> {
    fn new(anchor: Option<Head>, known: Option<&'a (u64, String)>) -> Result<Self> {
        let mut check = Self {
            verifier: Verifier::new(anchor.clone(), sha256_hex),
            first: anchor.as_ref().map_or(0, |anchor| anchor.sequence.saturating_add(1)),
            known,
            met: known.is_none(),
        };
        if let Some(anchor) = &anchor {
            check.meet(anchor)?;
        }
        Ok(check)
    }

    fn event(&mut self, followed: std::result::Result<(), audit::Fault>) -> Result<()> {
        followed.map_err(|fault| broken(&fault.to_string()))?;
        if let Some(last) = self.verifier.last().cloned() {
            if self.first == 0 {
                self.first = last.sequence;
            }
            self.meet(&last)?;
        }
        Ok(())
    }

    fn meet(&mut self, place: &Head) -> Result<()> {
        if let Some((sequence, hash)) = self.known
            && *sequence == place.sequence
        {
            if *hash != place.hash {
                return Err(broken(&format!(
                    "event {sequence} is not the one that was known: all of it was made anew"
                )));
            }
            self.met = true;
        }
        Ok(())
    }

    fn finish(self, head: Option<Head>) -> Result<Verified> {
        let end = head.or_else(|| self.verifier.last().cloned());
        let end = end.unwrap_or_else(|| Head::start(0));
        self.verifier.finish(&end).map_err(|fault| broken(&fault.to_string()))?;
        if let Some((sequence, _)) = self.known.filter(|_| !self.met) {
            let why = if *sequence < self.first {
                "is older than what is kept"
            } else {
                "is not there"
            };
            return Err(broken(&format!("the known event {sequence} {why}")));
        }
        Ok(Verified {
            events: self.verifier.count(),
            first: self.first,
            head: end,
        })
    }
}

fn broken(why: &str) -> Error {
    Error::failed(format!("the audit trail does not hold: {why}"))
        .hint("compare it with an export or a backup, and find out who could write to the servers' disks")
}

async fn verify(management: &Management, known: Option<&(u64, String)>) -> Result<Verified> {
    let page = format!("{}?limit=1", path(&AUDIT_EVENTS, None, None));
    let newest: Value = management.fetch(&page).await?;
    let revision = tenant::text(&newest, "/metadata/resourceVersion").to_owned();
    let exactly = format!("resourceVersion={revision}&resourceVersionMatch=Exact");
    // Begin, end and events as they were at one revision: the trail grows and is trimmed meanwhile.
    let chains: Value = management
        .fetch(&format!("{}?{exactly}", path(&AUDIT_CHAINS, None, None)))
        .await?;
    let place = |name: &str| {
        let objects = chains["items"].as_array().into_iter().flatten();
        let mut found = objects.filter(|object| object["metadata"]["name"] == name);
        found.next().and_then(|object| Head::deserialize(&object["spec"]).ok())
    };
    let head = place(HEAD).unwrap_or_else(|| Head::start(0));
    let anchor = place(ANCHOR).unwrap_or_else(|| Head::start(head.group));
    let mut check = Check::new(Some(anchor), known)?;
    let mut each = |page: &mut Value| {
        for object in items(page) {
            let followed = check.verifier.object(&object);
            check.event(followed)?;
        }
        Ok(())
    };
    management.pages(&AUDIT_EVENTS, Some(&exactly), &mut each).await?;
    check.finish(Some(head))
}

fn verify_file(file: &Path, known: Option<&(u64, String)>) -> Result<Verified> {
    let reader = BufReader::new(File::open(file).map_err(|error| Error::io("open", file, &error))?);
    let mut check = Check::new(None, known)?;
    for (number, line) in reader.lines().enumerate() {
        let line = line.map_err(|error| Error::io("read", file, &error))?;
        let event = serde_json::from_str(&line).ok().and_then(audit::import);
        let Some((link, event)) = event else {
            return Err(broken(&format!(
                "line {} of {} is no exported event",
                number + 1,
                file.display()
            )));
        };
        follow_line(&mut check, &link, &event)?;
    }
    check.finish(None)
}

fn follow_line(check: &mut Check<'_>, link: &Link, event: &str) -> Result<()> {
    let followed = check.verifier.event(link, event);
    check.event(followed)
}

async fn export(app: &App, file: Option<&Path>) -> Result<()> {
    let management = app.management()?;
    let Some(file) = file else {
        let mut each = |page: &mut Value| {
            items(page)
                .iter()
                .try_for_each(|object| app.output.line(&audit::export(object).to_string()))
        };
        return management.pages(&AUDIT_EVENTS, None, &mut each).await;
    };
    let opened = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(files::PRIVATE)
        .open(file);
    let fault = |error: std::io::Error| Error::io("write", file, &error);
    let mut out = BufWriter::new(opened.map_err(|error| Error::io("create", file, &error))?);
    let mut written = 0u64;
    let mut each = |page: &mut Value| {
        for object in items(page) {
            writeln!(out, "{}", audit::export(&object)).map_err(fault)?;
            written += 1;
        }
        Ok(())
    };
    management.pages(&AUDIT_EVENTS, None, &mut each).await?;
    let out = out.into_inner().map_err(|error| fault(error.into_error()))?;
    out.sync_all().map_err(fault)?;
    app.output.line(&format!("{written} events in {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> Value {
        json!({
            "metadata": { "name": "x" },
            "spec": { "sequence": 7, "at": 1_700_000_000_000_i64 },
            "status": {
                "verb": "create", "stageTimestamp": "2023-11-14T22:13:20.000000Z",
                "user": { "username": "ann" }, "impersonatedUser": { "username": "bob" },
                "objectRef": { "resource": "pods", "subresource": "exec", "namespace": "a", "name": "p" },
                "responseStatus": { "code": 403 }, "sourceIPs": ["127.0.0.1"],
                "annotations": {
                    "authorization.k8s.io/decision": "forbid", "authorization.k8s.io/reason": "no",
                    "hanse.dev/target": "tenant/a/b", "hanse.dev/times": "3",
                },
            },
        })
    }

    #[test]
    fn rows_say_who_did_what_to_what() {
        assert_eq!(
            row(&object(), true).join("|"),
            "2023-11-14 22:13:20|ann as bob|create|pods/exec|a/p|403|127.0.0.1|tenant/a/b|7|3|no"
        );
        assert_eq!(row(&object(), false).len(), heads(false).len());
        assert_eq!(row(&json!({}), true).len(), heads(true).len());
    }

    #[test]
    fn filters() {
        let wants = |change: fn(&mut EventsArgs)| {
            let mut args = EventsArgs::default();
            change(&mut args);
            let from = args.since.map(|_| Timestamp::from_millis(1_700_000_000_001));
            Filter { args: &args, from }.wants(&object())
        };
        assert!(wants(|_| ()) && wants(|args| args.user = Some("ann".into())));
        assert!(wants(|args| args.user = Some("bob".into())) && !wants(|args| args.user = Some("eve".into())));
        assert!(wants(|args| args.resource = Some("pods".into())));
        assert!(wants(|args| args.resource = Some("pods/exec".into())));
        assert!(!wants(|args| args.resource = Some("exec".into())) && !wants(|args| args.verb = Some("get".into())));
        assert!(wants(|args| args.denied = true));
        assert!(!wants(|args| args.since = Some(Duration::from_secs(1))));
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"{\"a\":").unwrap(), Vec::<Value>::new());
        assert_eq!(lines.push(b"1}\n{}\n{").unwrap(), [json!({ "a": 1 }), json!({})]);
        assert!(lines.push(b"x\n").is_err());
        assert!(Lines::default().push(&vec![b'x'; MAX_LINE + 1]).is_err());
    }
}
