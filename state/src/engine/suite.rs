//! What every engine must do; run against each of them.

#![expect(clippy::unwrap_used, reason = "this is test code that other crates run")]

use super::{Cf, Engine, Reader, WriteBatch};
use bytes::Bytes;

fn put(batch: &mut WriteBatch, cf: Cf, key: &'static str, value: &'static str) {
    batch.put(
        cf,
        Bytes::from_static(key.as_bytes()),
        Bytes::from_static(value.as_bytes()),
    );
}

fn text(pairs: &[(Bytes, Bytes)]) -> String {
    let pair =
        |(key, value): &(Bytes, Bytes)| format!("{}={}", String::from_utf8_lossy(key), String::from_utf8_lossy(value));
    pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
}

fn all(reader: &(impl Reader + ?Sized), cf: Cf, from: &str, to: &str) -> String {
    text(&reader.scan(cf, from.as_bytes(), to.as_bytes(), usize::MAX).unwrap())
}

/// Runs every case against an empty engine.
pub fn engine_suite(engine: &dyn Engine) {
    let mut batch = WriteBatch::new();
    for (key, value) in [("b", "2"), ("a", "1"), ("d", "4"), ("c", "3")] {
        put(&mut batch, Cf::Key, key, value);
    }
    put(&mut batch, Cf::Log, "a", "log");
    engine.write(batch, true).unwrap();
    assert_eq!(engine.get(Cf::Key, b"a").unwrap().unwrap(), "1");
    assert_eq!(engine.get(Cf::Log, b"a").unwrap().unwrap(), "log");
    assert_eq!(engine.get(Cf::Rev, b"a").unwrap(), None, "families are apart");
    for (from, to, want) in [
        ("", "", "a=1 b=2 c=3 d=4"),
        ("b", "d", "b=2 c=3"),
        ("bb", "", "c=3 d=4"),
        ("d", "b", ""),
        ("b", "b", ""),
        ("x", "", ""),
    ] {
        assert_eq!(all(engine, Cf::Key, from, to), want, "{from} {to}");
        let last = engine.last(Cf::Key, from.as_bytes(), to.as_bytes()).unwrap();
        assert_eq!(
            last.map_or(String::new(), |pair| text(&[pair])),
            want.rsplit(' ').next().unwrap()
        );
    }
    assert_eq!(engine.scan(Cf::Key, b"", b"", 2).unwrap().len(), 2);
    cursors(engine);
    snapshots(engine);
    deletions(engine);
    engine.sync().unwrap();
}

fn cursors(engine: &dyn Engine) {
    let mut cursor = engine.cursor(Cf::Key, b"b", b"d").unwrap();
    assert_eq!(cursor.current(), Some((b"b".as_slice(), b"2".as_slice())));
    cursor.seek(b"bx").unwrap();
    assert_eq!(cursor.current(), Some((b"c".as_slice(), b"3".as_slice())));
    cursor.advance().unwrap();
    assert_eq!(cursor.current(), None, "a cursor keeps to its range");
    cursor.advance().unwrap();
    assert_eq!(cursor.current(), None);
    cursor.seek(b"a").unwrap();
    assert_eq!(
        cursor.current(),
        Some((b"b".as_slice(), b"2".as_slice())),
        "also downwards"
    );
}

fn snapshots(engine: &dyn Engine) {
    let snapshot = engine.snapshot();
    let mut batch = WriteBatch::new();
    put(&mut batch, Cf::Key, "b", "changed");
    put(&mut batch, Cf::Key, "e", "5");
    engine.write(batch, false).unwrap();
    assert_eq!(all(snapshot.as_ref(), Cf::Key, "b", ""), "b=2 c=3 d=4");
    assert_eq!(snapshot.get(Cf::Key, b"b").unwrap().unwrap(), "2");
    assert_eq!(snapshot.last(Cf::Key, b"", b"").unwrap().unwrap().0, "d");
    assert_eq!(all(engine, Cf::Key, "b", ""), "b=changed c=3 d=4 e=5");
}

fn deletions(engine: &dyn Engine) {
    let mut batch = WriteBatch::new();
    batch.delete(Cf::Key, Bytes::from_static(b"a"));
    batch.delete(Cf::Key, Bytes::from_static(b"missing"));
    batch.delete_range(Cf::Key, Bytes::from_static(b"c"), Bytes::from_static(b"e"));
    batch.delete_range(Cf::Key, Bytes::from_static(b"e"), Bytes::from_static(b"b"));
    // Later changes of a batch win.
    put(&mut batch, Cf::Key, "d", "again");
    put(&mut batch, Cf::Key, "f", "6");
    batch.delete(Cf::Key, Bytes::from_static(b"f"));
    engine.write(batch, false).unwrap();
    assert_eq!(all(engine, Cf::Key, "", ""), "b=changed d=again e=5");
    assert_eq!(all(engine, Cf::Log, "", ""), "a=log");
}
