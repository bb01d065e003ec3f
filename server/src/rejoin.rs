//! A server that found log entries missing, or its store damaged, comes back as a new member by itself
//! (docs/design/0009-membership.md).
//!
//! It asks the others first, then notes its new id in the data directory, puts what it has aside, and starts without data. What was done
//! is read off the directory, so a crash in between costs nothing. The damaged data is kept, once: a server that finds such data there
//! when it loses entries again stops, because then somebody has to look at its disk.

use crate::config::{MemberConfig, ServerConfig};
use crate::error::ServerError;
use crate::files;
use hanse_consensus::high_water::sync_dir;
use hanse_consensus::identity::stored_id;
use hanse_consensus::{ConsensusError, Joined, Member, NodeId};
use hanse_runtime::meter::Family;
use hanse_state::engine::EngineError;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How long a server asks the others for a new id.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(600);
/// What says which id this server has come back under, in the data directory.
const RECORD: &str = "rejoined.json";
/// Where data of which entries are missing is put, in the data directory.
const ASIDE: &str = "lost-data";
/// Form of the record.
const FORMAT: u32 = 1;

/// The id that this server has come back under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    format: u32,
    /// The id in its configuration, which stays as it is.
    configured: NodeId,
    /// The id that it had before.
    replaced: NodeId,
    /// The id that it has.
    id: NodeId,
    /// How often it came back so far.
    times: u64,
    /// Whom it may ask until it has data.
    members: Vec<Contact>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Contact {
    id: NodeId,
    name: String,
    raft: String,
}

/// Why a server does not come back by itself. The words are for its operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Hindrance {
    #[error("raft.rejoin is false: set it, or remove this server, wipe its data directory and let it join by a token")]
    Off,
    #[error(
        "its data directory does not say which server it was: remove it, wipe the directory and let it join by a token"
    )]
    Nobody,
    #[error(
        "it lost data before, and what it had then is still in {}: have its disk looked at, then move that directory away and start it again",
        .0.display()
    )]
    Again(PathBuf),
    #[error("there is no other server that could have what it lost: restore a backup")]
    Alone,
    #[error(
        "what it has is kept, and the same comes from the others twice, as a snapshot and as data: {needed} MiB must be free, and {free} are; make room and start it again"
    )]
    NoRoom { free: u64, needed: u64 },
    #[error(
        "{} is on another file system than the data directory, so what it has cannot be put aside: move it away, leave an empty directory, and let this server join by a token",
        .0.display()
    )]
    Apart(PathBuf),
}

/// What decides whether a server may come back by itself.
#[derive(Clone, Debug)]
struct Facts {
    /// As configured.
    allowed: bool,
    /// The id that its data belongs to.
    stored: Option<NodeId>,
    /// The id that it has.
    id: NodeId,
    /// Data that was put aside before.
    aside: Option<PathBuf>,
    /// Servers beside it in its configuration.
    others: usize,
    /// Bytes that are free.
    free: u64,
    /// Bytes of its store.
    store: u64,
    /// A part of its data that cannot be moved within the data directory.
    apart: Option<PathBuf>,
}

/// Whether it may ask the others. Pure.
fn hindrance(facts: &Facts) -> Option<Hindrance> {
    if !facts.allowed {
        return Some(Hindrance::Off);
    }
    if facts.stored != Some(facts.id) {
        return Some(Hindrance::Nobody);
    }
    if let Some(aside) = &facts.aside {
        return Some(Hindrance::Again(aside.clone()));
    }
    if facts.others == 0 {
        return Some(Hindrance::Alone);
    }
    if let Some(apart) = &facts.apart {
        return Some(Hindrance::Apart(apart.clone()));
    }
    let needed = facts.store.saturating_mul(2).saturating_add(files::FREE_SPACE_MIN);
    (facts.free < needed).then_some(Hindrance::NoRoom {
        free: facts.free >> 20,
        needed: needed >> 20,
    })
}

/// Bytes of the files in `folder`; the store has no folders in it.
fn size(folder: &Path) -> io::Result<u64> {
    let mut sum = 0;
    if !folder.exists() {
        return Ok(0);
    }
    for entry in fs::read_dir(folder)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// The part of the data that is on a file system of its own.
fn apart(data_dir: &Path) -> io::Result<Option<PathBuf>> {
    let own = fs::metadata(data_dir)?.dev();
    for part in [files::store_dir(data_dir), raft_dir(data_dir)] {
        match fs::metadata(&part) {
            Ok(found) if found.dev() != own => return Ok(Some(part)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether data lies there that a crash kept from being put aside: it is that of the id before. Pure.
fn to_put_aside(record: &Record, stored: Option<NodeId>) -> bool {
    stored == Some(record.replaced)
}

/// The configuration by which a server runs that came back. Pure.
fn applied(mut config: ServerConfig, record: &Record) -> ServerConfig {
    if config.id != record.configured {
        // Its operator has given it another id: that one counts.
        return config;
    }
    for member in &mut config.members {
        if member.id == config.id {
            member.id = record.id;
        }
    }
    config.id = record.id;
    config.raft.joins = true;
    for contact in &record.members {
        if config.members.iter().all(|member| member.id != contact.id) {
            config.members.push(MemberConfig {
                id: contact.id,
                name: contact.name.clone(),
                region: String::new(),
                gateway: String::new(),
                raft: contact.raft.clone(),
                tunnel: String::new(),
            });
        }
    }
    config
}

/// What is noted when the others have given an id to the server that `config` is for. Pure.
fn record_of(config: &ServerConfig, before: Option<&Record>, joined: &Joined) -> Record {
    let before = before.filter(|record| record.id == config.id);
    let contact = |(id, member): (&NodeId, &Member)| Contact {
        id: *id,
        name: member.name.clone(),
        raft: member.address.clone(),
    };
    Record {
        format: FORMAT,
        configured: before.map_or(config.id, |record| record.configured),
        replaced: config.id,
        id: joined.id,
        times: before.map_or(0, |record| record.times) + 1,
        members: joined.members.iter().map(contact).collect(),
    }
}

fn fault(path: &Path, what: &str) -> impl FnOnce(io::Error) -> ServerError {
    let text = format!("{what}: ");
    let path = path.to_owned();
    move |error| ServerError::File {
        what: "the data directory",
        path,
        fault: format!("{text}{error}"),
    }
}

fn raft_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("raft")
}

fn read(data_dir: &Path) -> Result<Option<Record>, ServerError> {
    let path = data_dir.join(RECORD);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fault(&path, "cannot be read")(error)),
    };
    let record: Record = serde_json::from_slice(&bytes)
        .map_err(|error| fault(&path, "does not say which id this server has")(io::Error::other(error)))?;
    if record.format != FORMAT {
        let newer = io::Error::other(format!("it has form {}: run the version that wrote it", record.format));
        return Err(fault(&path, "cannot be read")(newer));
    }
    Ok(Some(record))
}

fn write(data_dir: &Path, record: &Record) -> Result<(), ServerError> {
    let path = data_dir.join(RECORD);
    let fresh = path.with_extension("new");
    let written = || -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(record).map_err(io::Error::other)?;
        let mut file = File::create(&fresh)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        sync_dir(&path)
    };
    written().map_err(fault(&path, "cannot be written"))
}

/// Puts all data aside. The part that says whose it is goes last, so that a crash before that is noticed.
fn put_aside(data_dir: &Path) -> Result<(), ServerError> {
    let aside = data_dir.join(ASIDE);
    let moved = || -> io::Result<()> {
        fs::create_dir_all(&aside)?;
        for from in [files::store_dir(data_dir), raft_dir(data_dir)] {
            let to = from.file_name().map(|name| aside.join(name)).unwrap_or_default();
            if !from.exists() {
                continue;
            }
            if to.exists() {
                let text = format!("{} is there already: move it away", to.display());
                return Err(io::Error::other(text));
            }
            fs::rename(&from, &to)?;
            sync_dir(&to)?;
            sync_dir(&from)?;
        }
        Ok(())
    };
    moved().map_err(fault(&aside, "the data cannot be put aside there"))
}

fn stored(data_dir: &Path) -> Result<Option<NodeId>, ServerError> {
    stored_id(&raft_dir(data_dir)).map_err(|error| ServerError::part("consensus", error))
}

/// The configuration by which this server runs: that of `config`, under the id that it has come back under, if it has. Ends what a crash
/// cut short.
pub(crate) fn resume(config: ServerConfig) -> Result<ServerConfig, ServerError> {
    let dir = config.data_dir.clone();
    let Some(record) = read(&dir)? else {
        return Ok(config);
    };
    let config = applied(config, &record);
    if config.id == record.id && !dir.join(ASIDE).join("raft").exists() && to_put_aside(&record, stored(&dir)?) {
        put_aside(&dir)?;
    }
    let kept = dir.join(ASIDE);
    if kept.exists() {
        tracing::warn!(
            id = config.id,
            replaced = record.replaced,
            kept = %kept.display(),
            "this server lost data once and came back under a new id; what it had is kept: look at its disk, then move that away"
        );
    }
    Ok(config)
}

/// Whether it is missing entries, or a damaged store, that kept the server from starting.
pub(crate) fn is_loss(error: &ServerError) -> bool {
    let ServerError::Part { source, .. } = error else {
        return false;
    };
    matches!(source.downcast_ref(), Some(ConsensusError::LogLost { .. }))
        || matches!(source.downcast_ref(), Some(EngineError::Damaged { .. }))
}

/// Whether the server may ask the others for a new id.
pub(crate) fn may_ask(config: &ServerConfig) -> Result<Option<Hindrance>, ServerError> {
    let (aside, store) = (config.data_dir.join(ASIDE), files::store_dir(&config.data_dir));
    let facts = Facts {
        allowed: config.raft.rejoin,
        stored: stored(&config.data_dir)?,
        id: config.id,
        aside: Some(aside).filter(|path| path.exists()),
        others: config.members.len().saturating_sub(1),
        free: files::free_space(&config.data_dir)?,
        store: size(&store).map_err(fault(&store, "cannot be examined"))?,
        apart: apart(&config.data_dir).map_err(fault(&config.data_dir, "cannot be examined"))?,
    };
    Ok(hindrance(&facts))
}

/// Takes the place that the others have given; gives the configuration by which to start there.
pub(crate) fn take(config: ServerConfig, joined: &Joined) -> Result<ServerConfig, ServerError> {
    let dir = config.data_dir.clone();
    let record = record_of(&config, read(&dir)?.as_ref(), joined);
    write(&dir, &record)?;
    put_aside(&dir)?;
    tracing::warn!(
        replaced = record.replaced,
        id = record.id,
        kept = %dir.join(ASIDE).display(),
        "this server lost data and comes back as a new member; what it had is kept"
    );
    let before = ServerConfig {
        id: record.configured,
        members: renumbered(&config, record.configured),
        ..config
    };
    Ok(applied(before, &record))
}

/// The members with this server by another id.
fn renumbered(config: &ServerConfig, id: NodeId) -> Vec<MemberConfig> {
    let mut members = config.members.clone();
    if let Some(own) = members.iter_mut().find(|member| member.id == config.id) {
        own.id = id;
    }
    members
}

/// How often this server came back, and whether what it had is still kept.
pub(crate) fn families(data_dir: &Path) -> Vec<Family> {
    let times = read(data_dir).ok().flatten().map_or(0, |record| record.times);
    let kept = data_dir.join(ASIDE).exists();
    vec![
        Family::counter(
            "hanse_server_rejoins_total",
            "Times that this server lost data and came back as a new member.",
            times,
        ),
        Family::gauge(
            "hanse_server_lost_data_kept",
            "1 while data of which something is missing or damaged is kept in the data directory.",
            u64::from(kept),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use hanse_runtime::config::parse_text;
    use std::collections::BTreeMap;

    fn config(dir: &Path) -> ServerConfig {
        let member = |id: u64| {
            format!(
                "[[member]]\nid = {id}\nname = \"s-{id}\"\nregion = \"eu\"\ngateway = \"g\"\nraft = \"h{id}:1\"\ntunnel = \"t\"\n"
            )
        };
        let text = format!(
            "name = \"s-3\"\nid = 3\nregion = \"eu\"\ndata_dir = {:?}\n[tls]\nca = \"a\"\nca_key = \"b\"\ncert = \"c\"\nkey = \"d\"\n\
             seal_key = \"e\"\n[gateway]\nlisten = \"127.0.0.1:1\"\nexternal_url = \"https://x\"\n[raft]\nlisten = \"127.0.0.1:2\"\n\
             [tunnel]\nlisten = \"127.0.0.1:3\"\n{}{}",
            dir.to_str().unwrap(),
            member(2),
            member(3)
        );
        parse_text(&text, Path::new("server.toml")).unwrap()
    }

    fn joined(id: NodeId) -> Joined {
        let member = |n: NodeId, name: &str| {
            let address = format!("h{n}:1");
            let name = name.to_owned();
            Member { name, address }
        };
        let members = BTreeMap::from([(2, member(2, "s-2")), (5, member(5, "s-5")), (id, member(3, "s-3"))]);
        Joined { id, members }
    }

    fn with_data(dir: &Path, id: NodeId) {
        for folder in ["store", "raft"] {
            fs::create_dir_all(dir.join(folder)).unwrap();
        }
        fs::write(dir.join("raft/server-id"), format!("hanse server id 1\n{id:x}\n")).unwrap();
        fs::write(dir.join("store/data"), format!("of {id}")).unwrap();
    }

    #[test]
    fn a_server_comes_back_once_and_only_where_it_is_known_and_allowed() {
        let good = Facts {
            allowed: true,
            stored: Some(3),
            id: 3,
            aside: None,
            others: 1,
            free: 456 << 20,
            store: 100 << 20,
            apart: None,
        };
        let cases: [(&str, Facts, Option<Hindrance>, &str); 8] = [
            ("as it should be", good.clone(), None, ""),
            (
                "switched off",
                Facts {
                    allowed: false,
                    ..good.clone()
                },
                Some(Hindrance::Off),
                "raft.rejoin",
            ),
            (
                "a wiped directory",
                Facts {
                    stored: None,
                    ..good.clone()
                },
                Some(Hindrance::Nobody),
                "token",
            ),
            (
                "another's directory",
                Facts {
                    stored: Some(4),
                    ..good.clone()
                },
                Some(Hindrance::Nobody),
                "token",
            ),
            (
                "it lost entries before",
                Facts {
                    aside: Some("x/lost-data".into()),
                    ..good.clone()
                },
                Some(Hindrance::Again("x/lost-data".into())),
                "x/lost-data",
            ),
            (
                "the only one",
                Facts {
                    others: 0,
                    ..good.clone()
                },
                Some(Hindrance::Alone),
                "restore a backup",
            ),
            (
                "a disk that has no room for two more",
                Facts {
                    free: 455 << 20,
                    ..good.clone()
                },
                Some(Hindrance::NoRoom { free: 455, needed: 456 }),
                "456 MiB must be free, and 455 are",
            ),
            (
                "a store on a disk of its own",
                Facts {
                    apart: Some("x/store".into()),
                    ..good
                },
                Some(Hindrance::Apart("x/store".into())),
                "x/store is on another file system",
            ),
        ];
        for (case, facts, expected, words) in cases {
            let found = hindrance(&facts);
            assert_eq!(found, expected, "{case}");
            let text = found.map(|why| why.to_string()).unwrap_or_default();
            assert!(text.contains(words), "{case}: {text}");
        }
    }

    #[test]
    fn the_new_id_holds_from_then_on_and_the_old_data_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        with_data(dir.path(), 3);
        assert_eq!(may_ask(&config(dir.path())).unwrap(), None);
        let taken = take(config(dir.path()), &joined(7)).unwrap();
        let again = resume(config(dir.path())).unwrap();
        for now in [taken, again] {
            assert_eq!((now.id, now.raft.joins), (7, true));
            assert_eq!(now.own_member().unwrap().name, "s-3");
            let ids: Vec<u64> = now.members.iter().map(|member| member.id).collect();
            assert_eq!(ids, [2, 7, 5], "one that its configuration does not know is asked, too");
        }
        assert!(!dir.path().join("store").exists() && !dir.path().join("raft").exists());
        let kept = dir.path().join(ASIDE);
        assert_eq!(fs::read_to_string(kept.join("store/data")).unwrap(), "of 3");
        with_data(dir.path(), 7);
        let now = resume(config(dir.path())).unwrap();
        assert_eq!(may_ask(&now).unwrap(), Some(Hindrance::Again(kept.clone())));
        fs::rename(&kept, dir.path().join("elsewhere")).unwrap();
        let third = take(now, &joined(9)).unwrap();
        assert_eq!((third.id, third.members.len()), (9, 3));
        assert_eq!(resume(config(dir.path())).unwrap().id, 9);
        let other = ServerConfig {
            id: 2,
            ..config(dir.path())
        };
        assert_eq!(resume(other).unwrap().id, 2, "the operator's word goes first");
    }

    #[test]
    fn what_a_crash_cut_short_is_ended_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let record = record_of(&config(dir.path()), None, &joined(7));
        for moved in [&[][..], &["store"], &["store", "raft"]] {
            for folder in ["store", "raft", ASIDE] {
                fs::remove_dir_all(dir.path().join(folder)).ok();
            }
            with_data(dir.path(), 3);
            write(dir.path(), &record).unwrap();
            fs::create_dir_all(dir.path().join(ASIDE)).unwrap();
            for folder in moved {
                fs::rename(dir.path().join(folder), dir.path().join(ASIDE).join(folder)).unwrap();
            }
            assert_eq!(resume(config(dir.path())).unwrap().id, 7, "{moved:?}");
            assert!(
                !dir.path().join("store").exists() && !dir.path().join("raft").exists(),
                "{moved:?}"
            );
            assert!(dir.path().join(ASIDE).join("store/data").exists(), "{moved:?}");
        }
        // Its own data stays where it is.
        with_data(dir.path(), 7);
        resume(config(dir.path())).unwrap();
        assert!(dir.path().join("store/data").exists());
        fs::write(dir.path().join(RECORD), "{}").unwrap();
        assert!(
            resume(config(dir.path())).is_err(),
            "damage is not taken for another id"
        );
    }
}
