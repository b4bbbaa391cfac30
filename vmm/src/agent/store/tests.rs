use super::*;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn put(store: &Store, key: &str, value: u64) {
    let mut batch = Batch::new();
    batch.put(Table::Tenants, key, &value);
    runtime().block_on(store.commit(batch)).unwrap();
}

/// Opens the store once the thread of one that was dropped has closed it.
fn reopen(path: &Path) -> (Store, Loaded) {
    loop {
        match Store::open(path, &try_here) {
            Err(StoreError::InUse(_)) => thread::yield_now(),
            other => return other.unwrap(),
        }
    }
}

#[test]
fn what_was_committed_is_there_after_the_store_was_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("yund.redb");
    let (store, loaded) = Store::open(&path, &try_here).unwrap();
    assert!(loaded.all::<u64>(&path, Table::Tenants).unwrap().is_empty());
    put(&store, "a", 1);
    put(&store, "b", 2);
    let mut batch = Batch::new();
    batch.remove(Table::Tenants, "a").put(Table::Vms, "c", &"three");
    runtime().block_on(store.commit(batch)).unwrap();
    drop(store);
    let (store, loaded) = reopen(&path);
    assert_eq!(loaded.all::<u64>(&path, Table::Tenants).unwrap(), [("b".to_owned(), 2)].into());
    assert_eq!(
        loaded.all::<String>(&path, Table::Vms).unwrap(),
        [("c".to_owned(), "three".to_owned())].into()
    );
    let rows: Vec<(String, u64)> = runtime().block_on(store.scan(Table::Tenants, "", 10)).unwrap();
    assert_eq!(rows, [("b".to_owned(), 2)]);
    assert!(matches!(loaded.all::<u64>(&path, Table::Vms), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_second_agent_on_one_store_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("yund.redb");
    let (_store, _) = Store::open(&path, &try_here).unwrap();
    let error = Store::open(&path, &try_here).unwrap_err();
    assert!(matches!(error, StoreError::InUse(_)), "{error}");
    assert!(error.to_string().contains("in use by another agent"), "{error}");
}

#[test]
fn a_newer_store_is_refused_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("yund.redb");
    let (store, _) = Store::open(&path, &try_here).unwrap();
    let mut batch = Batch::new();
    batch.put(Table::Meta, "format", &(FORMAT + 1));
    runtime().block_on(store.commit(batch)).unwrap();
    drop(store);
    let error = loop {
        match Store::open(&path, &try_here) {
            Err(StoreError::InUse(_)) => thread::yield_now(),
            other => break other.unwrap_err(),
        }
    };
    assert!(matches!(error, StoreError::Newer { found: 2, .. }), "{error}");
    assert!(error.to_string().contains("start the newer version"), "{error}");
}

#[test]
fn a_store_cut_off_anywhere_is_refused_or_whole_and_its_bytes_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("yund.redb");
    let (store, _) = Store::open(&path, &try_here).unwrap();
    for n in 0..50 {
        put(&store, &format!("tenant-{n}"), n);
    }
    drop(store);
    drop(reopen(&path));
    drop(reopen(&path));
    while matches!(Store::open(&path, &try_here), Err(StoreError::InUse(_))) {}
    let whole = fs::read(&path).unwrap();
    let cut = dir.path().join("cut.redb");
    let mut refused = 0;
    for len in (0..whole.len()).step_by(1024) {
        fs::write(&cut, &whole[..len]).unwrap();
        match Store::open(&cut, &try_here) {
            Ok((store, loaded)) => {
                assert_eq!(loaded.all::<u64>(&cut, Table::Tenants).unwrap().len(), 50, "cut at {len}");
                drop(store);
                while matches!(Store::open(&cut, &try_here), Err(StoreError::InUse(_))) {}
            }
            Err(error) => {
                refused += 1;
                assert!(matches!(error, StoreError::Damaged { .. }), "cut at {len}: {error:?}");
                assert!(error.to_string().contains("put the newest good one"), "{error}");
                assert!(fs::read(&cut).unwrap() == whole[..len], "cut at {len}");
            }
        }
    }
    assert!(refused > 0);
    fs::write(&cut, vec![0xa5; 8192]).unwrap();
    assert!(matches!(Store::open(&cut, &try_here), Err(StoreError::Damaged { .. })));
}

#[test]
fn many_at_once_are_all_there_and_each_batch_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("yund.redb");
    let (store, _) = Store::open(&path, &try_here).unwrap();
    thread::scope(|scope| {
        for n in 0..64 {
            let store = store.clone();
            scope.spawn(move || put(&store, &format!("{n:02}"), n));
        }
    });
    let rows: Vec<(String, u64)> = runtime().block_on(store.scan(Table::Tenants, "10", 20)).unwrap();
    assert_eq!(rows.iter().map(|(_, n)| *n).collect::<Vec<_>>(), (10..30).collect::<Vec<_>>());
}

#[test]
fn a_copy_is_a_store_with_the_same_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let (path, copy) = (dir.path().join("yund.redb"), dir.path().join("yund.redb.1"));
    let (store, _) = Store::open(&path, &try_here).unwrap();
    put(&store, "a", 7);
    runtime().block_on(store.back_up(copy.clone())).unwrap();
    put(&store, "a", 8);
    let (_store, loaded) = Store::open(&copy, &try_here).unwrap();
    assert_eq!(loaded.all::<u64>(&copy, Table::Tenants).unwrap()["a"], 7);
}

#[test]
fn what_is_about_to_end_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.redb");
    drop(Store::open(&path, &try_here).unwrap());
    // It is closed by a thread of its own.
    let held = fs::File::open(&path).unwrap();
    held.lock().unwrap();
    let dying = thread::spawn(move || {
        thread::sleep(DYING / 10);
        drop(held);
    });
    Store::open(&path, &try_here).unwrap();
    dying.join().unwrap();
}
