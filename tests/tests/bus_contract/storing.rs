//! Key-value buckets and objects.

use super::*;
use ternfleet_proto::table::{KvSpec, ObjectSpec};
use tokio::io::AsyncReadExt;

on_both!(
    a_key_is_created_once,
    an_update_with_an_old_revision_loses,
    a_deletion_may_be_conditional_and_frees_the_key,
    entries_are_the_live_ones,
    a_lease_is_free_after_its_time_to_live,
    a_renewed_lease_is_held,
    an_object_comes_back_whole_and_from_any_byte,
    an_object_is_replaced_listed_and_deleted,
    a_deleted_object_leaves_nothing,
    objects_stored_at_the_same_time_do_not_mix,
    a_missing_object_is_not_found,
);

async fn with_kv(bus: &Shared) {
    bus.ensure_kv(&KvSpec { bucket: "b".into(), replicas: 1, history: 1, max_age: None }).await.unwrap();
}

async fn with_objects(bus: &Shared) {
    bus.ensure_objects(&ObjectSpec { bucket: "files_t".into(), replicas: 1, max_bytes: None, max_age: None })
        .await
        .unwrap();
}

async fn a_key_is_created_once(bus: Shared) {
    with_kv(&bus).await;
    with_kv(&bus).await;
    assert_eq!(bus.kv_get("b", "k").await.unwrap(), None);
    let revision = bus.kv_create("b", "k", "1".into(), None).await.unwrap();
    assert!(matches!(bus.kv_create("b", "k", "2".into(), None).await, Err(BusError::Exists(_))));
    let entry = bus.kv_get("b", "k").await.unwrap().unwrap();
    assert_eq!((entry.key.as_str(), entry.value.as_ref(), entry.revision), ("k", &b"1"[..], revision));
}

async fn an_update_with_an_old_revision_loses(bus: Shared) {
    with_kv(&bus).await;
    let first = bus.kv_put("b", "k", "1".into()).await.unwrap();
    bus.kv_put("b", "other", "x".into()).await.unwrap();
    let second = bus.kv_update("b", "k", "2".into(), first, None).await.unwrap();
    assert_eq!(bus.kv_update("b", "k", "3".into(), first, None).await, Err(BusError::WrongLastSequence));
    assert_eq!(bus.kv_get("b", "k").await.unwrap().unwrap().revision, second);
}

async fn a_deletion_may_be_conditional_and_frees_the_key(bus: Shared) {
    with_kv(&bus).await;
    let first = bus.kv_create("b", "k", "1".into(), None).await.unwrap();
    let second = bus.kv_update("b", "k", "2".into(), first, None).await.unwrap();
    assert_eq!(bus.kv_delete("b", "k", Some(first)).await, Err(BusError::WrongLastSequence));
    bus.kv_delete("b", "k", Some(second)).await.unwrap();
    assert_eq!(bus.kv_get("b", "k").await.unwrap(), None);
    bus.kv_create("b", "k", "3".into(), None).await.unwrap();
    bus.kv_delete("b", "k", None).await.unwrap();
    assert_eq!(bus.kv_get("b", "k").await.unwrap(), None);
}

async fn entries_are_the_live_ones(bus: Shared) {
    with_kv(&bus).await;
    assert!(bus.kv_entries("b").await.unwrap().is_empty());
    for (key, value) in [("x.1", "1"), ("x.2", "2"), ("y", "3"), ("x.1", "4")] {
        bus.kv_put("b", key, value.into()).await.unwrap();
    }
    bus.kv_delete("b", "y", None).await.unwrap();
    let mut entries = bus.kv_entries("b").await.unwrap();
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let shown: Vec<(&str, &[u8])> = entries.iter().map(|e| (e.key.as_str(), e.value.as_ref())).collect();
    assert_eq!(shown, [("x.1", &b"4"[..]), ("x.2", &b"2"[..])]);
}

async fn a_lease_is_free_after_its_time_to_live(bus: Shared) {
    with_kv(&bus).await;
    let ttl = Some(Duration::from_secs(2));
    let first = bus.kv_create("b", "leader", "me".into(), ttl).await.unwrap();
    assert!(matches!(bus.kv_create("b", "leader", "you".into(), ttl).await, Err(BusError::Exists(_))));
    tokio::time::sleep(Duration::from_millis(3_500)).await;
    assert_eq!(bus.kv_get("b", "leader").await.unwrap(), None);
    assert_eq!(bus.kv_update("b", "leader", "me".into(), first, ttl).await, Err(BusError::WrongLastSequence));
    let second = bus.kv_create("b", "leader", "you".into(), ttl).await.unwrap();
    assert!(second > first, "a later leader has a higher revision");
}

async fn a_renewed_lease_is_held(bus: Shared) {
    with_kv(&bus).await;
    let ttl = Some(Duration::from_secs(2));
    let mut revision = bus.kv_create("b", "leader", "me".into(), ttl).await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        revision = bus.kv_update("b", "leader", "me".into(), revision, ttl).await.unwrap();
    }
    assert_eq!(bus.kv_get("b", "leader").await.unwrap().unwrap().revision, revision);
}

/// Bytes that differ from chunk to chunk.
fn content(length: usize, salt: u8) -> Bytes {
    (0..length).map(|i| (i / 1000 + i % 251) as u8 ^ salt).collect::<Vec<u8>>().into()
}

async fn store(bus: &Shared, name: &str, content: &Bytes) {
    let reader = Box::pin(std::io::Cursor::new(content.clone()));
    assert_eq!(bus.object_put("files_t", name, reader).await.unwrap(), content.len() as u64);
}

async fn read(bus: &Shared, name: &str, from: u64) -> Vec<u8> {
    let mut reader = bus.object_get("files_t", name, from).await.unwrap();
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn an_object_comes_back_whole_and_from_any_byte(bus: Shared) {
    with_objects(&bus).await;
    let stored = content(1_000_003, 0);
    store(&bus, "input.jsonl", &stored).await;
    assert_eq!(bus.object_length("files_t", "input.jsonl").await.unwrap(), Some(1_000_003));
    for from in [0, 1, 131_071, 131_072, 131_073, 700_000, 1_000_002, 1_000_003, 9_999_999] {
        let expected = &stored[from.min(stored.len())..];
        assert!(read(&bus, "input.jsonl", from as u64).await == expected, "from byte {from}");
    }
    for (name, length) in [("empty", 0), ("one", 1), ("chunk", 131_072), ("two", 262_144)] {
        let stored = content(length, 9);
        store(&bus, name, &stored).await;
        assert_eq!(read(&bus, name, 0).await, stored, "{name}");
    }
}

async fn an_object_is_replaced_listed_and_deleted(bus: Shared) {
    with_objects(&bus).await;
    assert!(bus.object_list("files_t").await.unwrap().is_empty());
    store(&bus, "a b/ü.jsonl", &content(300_000, 1)).await;
    store(&bus, "a b/ü.jsonl", &content(200_000, 2)).await;
    store(&bus, "c", &content(10, 3)).await;
    assert_eq!(read(&bus, "a b/ü.jsonl", 0).await, content(200_000, 2));
    let mut listed: Vec<_> = bus
        .object_list("files_t")
        .await
        .unwrap()
        .into_iter()
        .map(|facts| (facts.name, facts.bytes))
        .collect();
    listed.sort();
    assert_eq!(listed, [("a b/ü.jsonl".to_owned(), 200_000), ("c".to_owned(), 10)]);
    for (from, bytes) in [(0, 10), (131_000, 200), (199_990, 100), (200_000, 1), (0, 300_000)] {
        let part = bus.object_part("files_t", "a b/ü.jsonl", from, bytes).await.unwrap();
        let from = from as usize;
        assert!(part[..] == content(200_000, 2)[from..200_000.min(from + bytes)], "{bytes} from {from}");
    }
    bus.object_delete("files_t", "c").await.unwrap();
    assert_eq!(bus.object_length("files_t", "c").await.unwrap(), None);
    assert_eq!(bus.object_list("files_t").await.unwrap().len(), 1);
    store(&bus, "c", &content(20, 4)).await;
    assert_eq!(read(&bus, "c", 0).await, content(20, 4), "a name may be used again");
}

/// A deleted object leaves no message, or the bucket grows with each batch that ever was.
async fn a_deleted_object_leaves_nothing(bus: Shared) {
    with_objects(&bus).await;
    for turn in 0..20 {
        store(&bus, &format!("o{turn}"), &content(300_000, 1)).await;
        bus.object_delete("files_t", &format!("o{turn}")).await.unwrap();
    }
    // The simulated bus keeps objects apart from its streams.
    if let Ok(facts) = bus.stream_facts("OBJ_files_t").await {
        assert_eq!(facts.messages, 0);
    }
}

async fn objects_stored_at_the_same_time_do_not_mix(bus: Shared) {
    with_objects(&bus).await;
    let (a, b) = (content(3_000_000, 5), content(2_500_000, 6));
    tokio::join!(store(&bus, "a", &a), store(&bus, "b", &b));
    for (name, stored) in [("a", &a), ("b", &b)] {
        for from in [0usize, 1_000_000, 2_400_000] {
            assert!(read(&bus, name, from as u64).await == stored[from..], "{name} from byte {from}");
        }
    }
}

async fn a_missing_object_is_not_found(bus: Shared) {
    with_objects(&bus).await;
    assert_eq!(bus.object_length("files_t", "ghost").await.unwrap(), None);
    assert!(matches!(bus.object_get("files_t", "ghost", 0).await.map(drop), Err(BusError::NotFound(_))));
    bus.object_delete("files_t", "ghost").await.unwrap();
}
