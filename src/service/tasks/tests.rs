//! Unit tests of [`Tasks`].

use super::task::RECOGNISED_MAX;
use super::*;

const TASK: Uuid = Uuid::from_u128(1);
const EAR: Subscription = Subscription { number: 1, since: 1000 };
const SECOND: Duration = Duration::from_secs(1);

fn tasks() -> Tasks {
    Tasks::new(Settings { retain: Some(300 * SECOND), max_retained: 1 << 20, ..Default::default() })
}

fn kept(items: &[(u64, &str)]) -> Vec<KeptResult> {
    items
        .iter()
        .zip(0..)
        .map(|((stored_at, text), id)| KeptResult {
            stored_at: *stored_at,
            id,
            payload: text.as_bytes().to_vec(),
        })
        .collect()
}

fn payload(one: &Deliverable) -> &[u8] {
    let ResultContent::Published(payload) = &one.content else { panic!("{one:?}") };
    payload
}

fn texts(tasks: &Tasks) -> Vec<String> {
    let text = |one: Deliverable| String::from_utf8(payload(&one).to_vec()).unwrap();
    tasks.results(TASK).map(text).collect()
}

/// Texts with the `result_id` before each.
fn numbered(tasks: &Tasks) -> String {
    let text = |one: Deliverable| format!("{}{}", one.id, str::from_utf8(payload(&one)).unwrap());
    tasks.results(TASK).map(text).collect::<Vec<_>>().join(" ")
}

struct World {
    tasks: Tasks,
    now: Moment,
    subscription: Subscription,
}

impl World {
    fn new(tasks: Tasks) -> World {
        World { tasks, now: Moment::START, subscription: EAR }
    }

    fn hear(&mut self, text: &str) -> Occurrence {
        self.hear_on(TASK, text)
    }

    /// Hears, and says whether that was new.
    fn is_new(&mut self, text: &str) -> bool {
        let before = texts(&self.tasks).len();
        self.hear(text);
        texts(&self.tasks).len() > before
    }

    fn hear_on(&mut self, task: Uuid, text: &str) -> Occurrence {
        self.tasks.handle_published(self.now, task, self.subscription, text.as_bytes().into())
    }

    fn look_up(&mut self, items: &[(u64, &str)], set: &[&str]) -> usize {
        let set = set.iter().map(|text| text.as_bytes().to_vec()).collect();
        let kept = (kept(items), items.len() as u32);
        self.tasks.handle_looked_up(self.now, TASK, self.subscription, kept, set).len()
    }

    /// Redis keeps these, with these numbers, and goes on with `next_id`.
    fn look_up_numbered(&mut self, items: &[(u64, &str, u32)], next_id: u32) {
        let result = |&(stored_at, text, id): &(u64, &str, u32)| KeptResult {
            stored_at,
            id,
            payload: text.as_bytes().to_vec(),
        };
        let kept = (items.iter().map(result).collect(), next_id);
        self.tasks.handle_looked_up(self.now, TASK, self.subscription, kept, Vec::new());
    }

    fn client(&mut self, from: Option<ClientState>, to: Option<ClientState>, end: Option<TaskEnd>) {
        self.tasks.handle_client(self.now, TASK, from, to, end);
    }

    fn status(&self) -> (&'static str, bool) {
        let (status, is_connected) = self.tasks.status(TASK);
        (status.word(), is_connected)
    }
}

/// A task with one result costs these, the payload, four bytes and a little in a table.
#[test]
fn a_task_is_small() {
    assert!(size_of::<KnownResult>() <= 56, "{}", size_of::<KnownResult>());
    assert!(size_of::<(Uuid, Task)>() <= 152, "{}", size_of::<(Uuid, Task)>());
    assert!(size_of::<Retained>() <= 16, "{}", size_of::<Retained>());
}

#[test]
fn results_are_ordered_and_equal_ones_counted() {
    let mut world = World::new(tasks());
    let heard: Vec<Occurrence> = ["a", "b", "a", "a"].map(|text| world.hear(text)).into();
    assert_eq!(texts(&world.tasks), ["a", "b", "a", "a"]);
    assert_eq!(heard.iter().map(|occurrence| occurrence.nth).collect::<Vec<_>>(), [1, 1, 2, 3]);
    assert_eq!(
        heard.iter().map(|occurrence| occurrence.before).collect::<Vec<_>>(),
        [None, Some((heard[0].hash, 1)), Some((heard[1].hash, 1)), Some((heard[0].hash, 2))]
    );
    assert!(heard[0].hash == heard[2].hash && heard[0].hash != heard[1].hash);
}

#[test]
fn new_subscription_counts_from_one() {
    let mut world = World::new(tasks());
    world.hear("a");
    world.subscription = Subscription { number: 2, since: 5000 };
    let occurrence = world.hear("a");
    assert_eq!((occurrence.nth, occurrence.before), (1, None));
    assert_eq!(texts(&world.tasks), ["a", "a"]);
}

#[test]
fn results_from_redis_are_merged_in_order_and_once() {
    let mut world = World::new(tasks());
    world.client(None, Some(ClientState::Waiting), None);
    world.hear("c");
    assert!(!world.tasks.is_settled(TASK, EAR));
    // "a" is from before the subscription, "b" was stored late by another gateway; "c" is this
    // one's.
    world.look_up(&[(500, "a"), (2000, "b"), (2001, "c")], &[]);
    assert!(
        world.tasks.is_settled(TASK, EAR)
            && !world.tasks.is_settled(TASK, Subscription { number: 2, since: 0 })
    );
    assert_eq!(texts(&world.tasks), ["a", "b", "c"]);
    assert!(world.is_new("b"));
    assert!(world.is_new("a"));
    assert_eq!(texts(&world.tasks), ["a", "b", "c", "b", "a"]);
    world.look_up(&[(500, "a"), (2000, "b"), (2001, "c"), (2002, "b"), (2003, "a")], &[]);
    assert_eq!(texts(&world.tasks), ["a", "b", "c", "b", "a"]);
}

#[test]
fn missed_results_are_inserted_in_order() {
    for (known, kept, expected) in [
        ("", "abc", "abc"),
        ("abc", "", "abc"),
        ("bc", "abc", "abc"),
        ("ac", "abc", "abc"),
        ("ab", "abc", "abc"),
        ("abd", "abc", "abcd"),
        ("ab", "xyaz", "xyazb"),
        // Redis has lost "a"; it knows a wrong order for the moment.
        ("ab", "b", "ab"),
        ("ab", "bc", "abc"),
        ("abc", "ca", "abc"),
        ("abc", "xcya", "xyabc"),
    ] {
        let mut world = World::new(tasks());
        for text in known.chars() {
            world.hear(&text.to_string());
        }
        let kept: Vec<String> = kept.chars().map(String::from).collect();
        let kept: Vec<(u64, &str)> = kept.iter().map(|text| (2000, text.as_str())).collect();
        world.look_up(&kept, &[]);
        assert_eq!(texts(&world.tasks).concat(), expected, "{known} with {kept:?}");
        world.look_up(&kept, &[]);
        assert_eq!(texts(&world.tasks).concat(), expected, "{known} with {kept:?} again");
    }
}

#[test]
fn results_that_redis_lost_stay_before_later_ones() {
    let mut world = World::new(tasks());
    world.hear("a");
    world.look_up(&[(900, "x"), (2000, "a")], &[]);
    world.subscription = Subscription { number: 2, since: 5000 };
    world.hear("d");
    // Redis came back empty; another gateway was there before us.
    world.look_up(&[(4000, "b"), (4001, "c")], &[]);
    assert_eq!(texts(&world.tasks), ["x", "a", "b", "c", "d"]);
}

#[test]
fn result_found_late_is_not_dispatched_yet() {
    let mut world = World::new(tasks());
    world.client(None, Some(ClientState::Waiting), None);
    world.hear("b");
    world.tasks.mark_dispatched(world.now, TASK);
    world.look_up(&[(1, "a"), (2000, "b")], &[]);
    assert_eq!(
        world
            .tasks
            .tasks
            .entry(TASK)
            .unwrap()
            .results
            .present()
            .map(|one| one.is_dispatched)
            .collect::<Vec<_>>(),
        [false, true]
    );
}

#[test]
fn equal_results_before_and_after_an_absence_stay_two() {
    let mut world = World::new(tasks());
    world.hear("a");
    world.subscription = Subscription { number: 2, since: 5000 };
    // Ours from before, and one more that another gateway heard, as did we.
    world.hear("a");
    world.look_up(&[(2000, "a"), (6000, "a")], &[]);
    assert_eq!(texts(&world.tasks), ["a", "a"]);
    // Heard first, kept by another gateway as well, plus one that we missed.
    let mut world = World::new(tasks());
    world.hear("a");
    world.look_up(&[(900, "a"), (2000, "a")], &[]);
    assert_eq!(texts(&world.tasks), ["a", "a"]);
    assert!(world.is_new("a"));
}

#[test]
fn result_stored_late_is_recognised() {
    let mut world = World::new(tasks());
    world.hear("a");
    world.subscription = Subscription { number: 2, since: 5000 };
    world.look_up(&[(6000, "a")], &[]);
    assert_eq!(texts(&world.tasks), ["a"]);
    assert!(world.is_new("a"));
}

#[test]
fn redis_that_lost_its_data_removes_nothing() {
    let mut world = World::new(tasks());
    world.hear("a");
    world.hear("b");
    world.look_up(&[], &[]);
    assert_eq!(texts(&world.tasks), ["a", "b"]);
}

#[test]
fn set_result_is_recognised_when_it_is_published() {
    let mut world = World::new(tasks());
    assert_eq!(world.look_up(&[], &["a"]), 1);
    assert_eq!(texts(&world.tasks), ["a"]);
    assert_eq!(world.look_up(&[], &["a"]), 0);
    assert!(!world.is_new("a"));
    assert!(world.is_new("a"));
    assert_eq!(texts(&world.tasks), ["a", "a"]);
    assert_eq!(world.look_up(&[(2000, "a"), (2001, "a")], &["a"]), 0);
    assert_eq!(world.look_up(&[(2000, "a"), (2001, "a")], &["c", "c"]), 1);
    assert_eq!(texts(&world.tasks), ["a", "a", "c"]);
}

#[test]
fn set_result_is_recognised_during_a_later_subscription() {
    let mut world = World::new(tasks());
    world.look_up(&[], &["a"]);
    world.subscription = Subscription { number: 2, since: 5000 };
    assert_eq!(world.look_up(&[(KeptResult::NOT_PUBLISHED, "a")], &["a"]), 0);
    assert!(!world.is_new("a"));
    assert!(world.is_new("a"));
}

#[test]
fn result_that_another_gateway_found_set_is_recognised_when_it_is_published() {
    let mut world = World::new(tasks());
    assert_eq!(world.look_up(&[(2000, "a"), (KeptResult::NOT_PUBLISHED, "b")], &["b"]), 0);
    assert!(!world.is_new("b"));
    assert!(world.is_new("b"));
    assert!(world.is_new("a"));
}

#[test]
fn result_heard_by_another_gateway_before_an_absence_is_not_duplicated() {
    let mut world = World::new(tasks());
    world.look_up(&[(2000, "a")], &[]);
    world.subscription = Subscription { number: 2, since: 5000 };
    world.look_up(&[(2000, "a")], &[]);
    assert_eq!(texts(&world.tasks), ["a"]);
    assert!(world.is_new("a"));
}

#[test]
fn empty_look_up_leaves_no_task() {
    let mut world = World::new(tasks());
    world.look_up(&[], &[]);
    assert!(world.tasks.is_empty());
}

#[test]
fn results_expire_after_retain() {
    let mut world = World::new(tasks());
    world.hear("a");
    world.now += 200 * SECOND;
    world.hear("b");
    let deadline = world.tasks.deadline().unwrap();
    world.tasks.trim(world.now + (deadline - world.now - Duration::from_nanos(1)), |_| false);
    assert_eq!(texts(&world.tasks), ["a", "b"]);
    world.tasks.trim(deadline, |_| false);
    assert_eq!(texts(&world.tasks), ["b"]);
    // Gone, but recognised as long as the task is known.
    assert_eq!(world.hear("a").nth, 2);
    world.now += 400 * SECOND;
    world.tasks.trim(world.now, |_| false);
    assert!(world.tasks.is_empty() && world.tasks.deadline().is_none());
    assert_eq!(
        (world.tasks.retained_bytes(), world.tasks.retained(), world.tasks.evicted()),
        (0, 0, 0)
    );
    assert_eq!(world.tasks.poll_forgotten(), None);
}

/// Room for ten results of one byte.
fn small() -> World {
    let max_retained = 10 * (RESULT_COST + 1);
    World::new(Tasks::new(Settings {
        retain: Some(300 * SECOND),
        max_retained,
        ..Default::default()
    }))
}

fn evict_all(world: &mut World) {
    for task in 100..110 {
        world.hear_on(Uuid::from_u128(task), "x");
        world.tasks.trim(world.now, |_| false);
    }
}

#[test]
fn oldest_result_is_evicted_first() {
    let mut world = small();
    for task in 0..25 {
        world.hear_on(Uuid::from_u128(task), "x");
        world.tasks.trim(world.now, |_| false);
    }
    assert_eq!((world.tasks.retained(), world.tasks.evicted()), (10, 15));
    assert_eq!(world.tasks.retained_bytes(), 10 * (RESULT_COST + 1));
    assert_eq!(
        std::iter::from_fn(|| world.tasks.poll_forgotten()).collect::<Vec<_>>(),
        (0..15).map(Uuid::from_u128).collect::<Vec<_>>()
    );
    assert_eq!(world.tasks.results(Uuid::from_u128(15)).count(), 1);
    // What was evicted is remembered for as long as it would have been kept.
    assert!(world.tasks.is_incomplete(Uuid::from_u128(14)));
    assert!(!world.tasks.is_incomplete(Uuid::from_u128(15)));
    world.tasks.trim(world.now + 300 * SECOND, |_| false);
    assert!(world.tasks.is_empty());
}

#[test]
fn task_holds_at_most_half_of_the_room() {
    let mut world = small();
    world.hear_on(Uuid::from_u128(7), "x");
    for _ in 0..20 {
        world.hear("y");
        world.tasks.trim(world.now, |_| false);
    }
    assert_eq!((texts(&world.tasks).len(), world.tasks.not_kept()), (5, 15));
    assert_eq!(world.tasks.results(Uuid::from_u128(7)).count(), 1, "the others keep theirs");
    assert_eq!(world.tasks.evicted(), 0);
    assert!(world.tasks.is_incomplete(TASK) && !world.tasks.is_incomplete(Uuid::from_u128(7)));
}

#[test]
fn result_larger_than_all_room_evicts_nothing() {
    let mut world = small();
    evict_all(&mut world);
    let evicted = world.tasks.evicted();
    world.hear(&"y".repeat(5000));
    world.tasks.trim(world.now, |_| false);
    assert_eq!((world.tasks.retained(), world.tasks.evicted() - evicted), (10, 0));
    assert_eq!((texts(&world.tasks).len(), world.tasks.not_kept()), (0, 1));
    assert!(world.tasks.is_incomplete(TASK));
}

#[test]
fn result_without_room_is_given_to_the_clients_that_wait() {
    let mut world = small();
    world.client(None, Some(ClientState::Waiting), None);
    let large = "y".repeat(5000);
    world.hear("a");
    world.hear(&large);
    world.hear("b");
    world.tasks.trim(world.now, |_| false);
    assert_eq!(texts(&world.tasks), ["a", large.as_str(), "b"]);
    assert!(!world.tasks.is_incomplete(TASK), "no client has missed it yet");
    world.tasks.mark_dispatched(world.now, TASK);
    assert_eq!(texts(&world.tasks), ["a", "b"]);
    assert!(world.tasks.is_incomplete(TASK));
    world.hear(&large);
    world.client(Some(ClientState::Waiting), None, None);
    assert_eq!(texts(&world.tasks), ["a", "b"], "the client has left");
    assert_eq!(world.tasks.retained_bytes(), 2 * (RESULT_COST + 1));
}

#[test]
fn task_with_a_client_is_not_removed() {
    let mut world = small();
    world.client(None, Some(ClientState::Waiting), None);
    world.hear("a");
    world.tasks.mark_dispatched(world.now, TASK);
    evict_all(&mut world);
    assert_eq!(texts(&world.tasks), Vec::<String>::new());
    assert_eq!(world.tasks.poll_forgotten(), None);
    // Evicted here and kept in Redis: it was dispatched, so it does not come back.
    world.look_up(&[(2000, "a")], &[]);
    assert_eq!(texts(&world.tasks), Vec::<String>::new());
    world.client(Some(ClientState::Waiting), None, None);
    world.tasks.trim(world.now + 300 * SECOND, |_| false);
    assert!(world.tasks.is_empty());
}

#[test]
fn evicted_result_without_delivery_is_taken_from_redis_again() {
    let mut world = small();
    world.client(None, Some(ClientState::Waiting), None);
    world.hear("a");
    evict_all(&mut world);
    assert_eq!(texts(&world.tasks), Vec::<String>::new());
    world.look_up(&[(2000, "a")], &[]);
    assert_eq!(texts(&world.tasks), ["a"]);
}

#[test]
fn without_retention_only_undelivered_results_stay() {
    let mut world = World::new(Tasks::new(Settings {
        retain: None,
        max_retained: 1 << 20,
        ..Default::default()
    }));
    world.hear("a");
    world.tasks.trim(world.now, |_| false);
    assert!(world.tasks.is_empty());
    world.client(None, Some(ClientState::Waiting), None);
    world.hear("b");
    world.tasks.trim(world.now, |_| false);
    assert_eq!(texts(&world.tasks), ["b"]);
    world.tasks.mark_dispatched(world.now, TASK);
    world.tasks.trim(world.now, |_| false);
    assert_eq!(texts(&world.tasks), Vec::<String>::new());
    world.client(Some(ClientState::Waiting), None, Some(TaskEnd::Completed));
    assert!(world.tasks.is_empty() && world.tasks.deadline().is_none());
}

#[test]
fn status_follows_clients_and_results() {
    let mut world = World::new(tasks());
    assert_eq!(world.status(), ("not_found", false));
    world.client(None, Some(ClientState::Waiting), None);
    assert_eq!(world.status(), ("waiting", true));
    world.client(None, Some(ClientState::Sending), None);
    assert_eq!(world.status(), ("sending", true));
    world.client(Some(ClientState::Sending), None, None);
    assert_eq!(world.status(), ("waiting", true));
    world.client(Some(ClientState::Waiting), None, None);
    assert_eq!(world.status(), ("not_found", false));
    assert!(world.tasks.is_empty());
    world.hear("a");
    assert_eq!(world.status(), ("ready", false));
    world.client(None, Some(ClientState::Waiting), None);
    world.client(Some(ClientState::Waiting), Some(ClientState::Sending), None);
    world.tasks.mark_dispatched(world.now, TASK);
    assert_eq!(world.status(), ("sending", true));
    world.client(Some(ClientState::Sending), None, None);
    assert_eq!(world.status(), ("ready", false), "it left midway and may come back");
    world.client(None, Some(ClientState::Sending), None);
    world.client(Some(ClientState::Sending), None, Some(TaskEnd::Completed));
    assert_eq!(world.status(), ("completed", false));
    world.hear("b");
    assert_eq!(world.status(), ("ready", false), "there is more than was delivered");
    world.tasks.mark_dispatched(world.now, TASK);
    world.client(None, Some(ClientState::Sending), None);
    world.client(Some(ClientState::Sending), None, Some(TaskEnd::Failed));
    assert_eq!(world.status(), ("failed", false));
}

#[test]
fn end_of_a_task_is_known_for_retain() {
    let mut world = World::new(tasks());
    world.client(None, Some(ClientState::Waiting), None);
    world.client(Some(ClientState::Waiting), None, Some(TaskEnd::TimedOut));
    assert_eq!(world.status(), ("timeout", false));
    world.now += 200 * SECOND;
    world.client(None, Some(ClientState::Waiting), None);
    assert_eq!(world.status(), ("waiting", true));
    world.client(Some(ClientState::Waiting), None, Some(TaskEnd::Completed));
    world.tasks.trim(world.now + 150 * SECOND, |_| false);
    assert_eq!(world.status(), ("completed", false), "the first end is not the last");
    world.tasks.trim(world.now + 300 * SECOND, |_| false);
    assert_eq!(world.status(), ("not_found", false));
    assert!(world.tasks.is_empty());
}

#[test]
fn remembered_ends_are_bounded() {
    let max_retained = 4 * REMEMBERED_MAX * RESULT_COST;
    let settings = Settings { retain: Some(300 * SECOND), max_retained, ..Default::default() };
    let mut world = World::new(Tasks::new(settings));
    for task in 0..REMEMBERED_MAX as u128 + 10 {
        world.tasks.handle_client(
            world.now,
            Uuid::from_u128(task),
            None,
            Some(ClientState::Waiting),
            None,
        );
        world.tasks.handle_client(
            world.now,
            Uuid::from_u128(task),
            Some(ClientState::Waiting),
            None,
            Some(TaskEnd::TimedOut),
        );
        world.tasks.trim(world.now, |_| false);
    }
    assert_eq!(world.tasks.len(), REMEMBERED_MAX);
}

#[test]
fn tasks_without_results_take_of_the_room_for_results() {
    let max_retained = 4 * 1024 * 1024;
    let settings = Settings { retain: Some(300 * SECOND), max_retained, ..Default::default() };
    let mut world = World::new(Tasks::new(settings));
    let text = "x".repeat(500);
    for task in 0..20_000 {
        world.hear_on(Uuid::from_u128(task), &text);
        world.tasks.trim(world.now, |_| false);
        assert!(world.tasks.held_bytes() <= max_retained, "after {task}");
    }
    let lost = world.tasks.len() - world.tasks.retained();
    assert_eq!(lost, max_retained / 4 / RESULT_COST, "they take a quarter");
    assert!(world.tasks.retained_bytes() > max_retained * 7 / 10);
    assert!(world.tasks.is_incomplete(Uuid::from_u128(12_000)));
}

#[test]
fn number_of_results_is_not_limited() {
    let mut world = World::new(Tasks::new(Settings::default()));
    let expected: Vec<String> = (0..6000).map(|i| i.to_string()).collect();
    for text in &expected {
        world.hear(text);
    }
    world.tasks.trim(world.now, |_| false);
    assert_eq!(texts(&world.tasks), expected);
    assert!(!world.tasks.is_incomplete(TASK));
}

#[test]
fn results_that_are_gone_are_recognised_within_bounds() {
    let mut world = World::new(tasks());
    world.client(None, Some(ClientState::Waiting), None);
    for i in 0..2 * RECOGNISED_MAX + 600 {
        world.hear(&i.to_string());
        world.tasks.mark_dispatched(world.now, TASK);
        world.now += SECOND;
        world.tasks.trim(world.now, |_| false);
    }
    let known = world.tasks.tasks.entry(TASK).unwrap().results.len();
    assert!((RECOGNISED_MAX..=2 * RECOGNISED_MAX).contains(&known), "{known}");
    assert_eq!(world.tasks.retained(), 300 - 1);
    world.client(Some(ClientState::Waiting), None, None);
    world.tasks.trim(world.now + 300 * SECOND, |_| false);
    assert!(world.tasks.is_empty() && world.tasks.retained_bytes() == 0);
}

#[test]
fn results_are_numbered_in_order() {
    let mut world = World::new(tasks());
    let heard = ["a", "b", "a"].map(|text| world.hear(text).id);
    assert_eq!(heard, [0, 1, 2]);
    assert_eq!(numbered(&world.tasks), "0a 1b 2a");
    assert_eq!(world.hear_on(Uuid::from_u128(2), "a").id, 0, "each task counts for itself");
}

#[test]
fn numbers_are_those_of_redis() {
    for (heard, kept, next_id, expected) in [
        // A gateway that was started after them.
        ("", &[(500, "a", 0), (501, "b", 1)][..], 2, "0a 1b"),
        // It heard the third one and took it for the first.
        ("c", &[(500, "a", 0), (501, "b", 1), (2000, "c", 2)], 3, "0a 1b 2c"),
        // The same, and it is not stored yet.
        ("c", &[(500, "a", 0), (501, "b", 1)], 2, "0a 1b 2c"),
        // Nothing is kept any more, but the count goes on.
        ("c", &[], 2, "2c"),
        ("cd", &[], 2, "2c 3d"),
        // The first ones are not kept any more.
        ("d", &[(500, "b", 7), (501, "c", 8)], 9, "7b 8c 9d"),
        // The second one was refused for lack of room: its number is not given again.
        ("", &[(500, "a", 0), (501, "c", 2)], 3, "0a 2c"),
        ("bc", &[(500, "a", 3), (2000, "b", 4)], 5, "3a 4b 5c"),
    ] {
        let mut world = World::new(tasks());
        for text in heard.chars() {
            world.hear(&text.to_string());
        }
        world.look_up_numbered(kept, next_id);
        assert_eq!(numbered(&world.tasks), expected, "{heard} {kept:?}");
        let next: u32 = world.hear("z").id;
        let last = expected.split(' ').next_back().map(|last| last[..1].parse::<u32>().unwrap());
        assert_eq!(next, last.unwrap() + 1, "{heard} {kept:?}");
    }
}

#[test]
fn number_that_a_client_has_seen_stays() {
    let mut world = World::new(tasks());
    world.client(None, Some(ClientState::Waiting), None);
    world.look_up(&[], &[]);
    for text in ["a", "b"] {
        world.hear(text);
    }
    world.tasks.mark_dispatched(world.now, TASK);
    // Redis was emptied meanwhile, and another gateway counts anew.
    world.subscription = Subscription { number: 2, since: 5000 };
    world.look_up_numbered(&[(6000, "c", 0)], 1);
    assert_eq!(numbered(&world.tasks), "0a 1b 2c");
    // Redis refused the fourth one, which was delivered.
    assert_eq!(world.hear("d").id, 3);
    world.tasks.mark_dispatched(world.now, TASK);
    world.look_up_numbered(&[(6000, "c", 2)], 4);
    assert_eq!((numbered(&world.tasks).as_str(), world.hear("e").id), ("0a 1b 2c 3d", 4));
}

#[test]
fn numbers_go_on_behind_what_a_client_has_seen() {
    let mut world = World::new(tasks());
    world.tasks.note_seen(TASK, 5);
    assert!(world.tasks.is_empty(), "a task without a client is not known for it");
    world.client(None, Some(ClientState::Waiting), None);
    // The gateway was restarted, and this was published before the client returned.
    world.hear("a");
    world.tasks.note_seen(TASK, 5);
    world.tasks.note_seen(TASK, 3);
    world.tasks.apply_seen(TASK);
    assert_eq!((world.hear("b").id, numbered(&world.tasks).as_str()), (6, "5a 6b"));
    // What others have had keeps its number.
    world.tasks.mark_dispatched(world.now, TASK);
    world.hear("c");
    world.tasks.note_seen(TASK, 9);
    world.tasks.apply_seen(TASK);
    assert_eq!(numbered(&world.tasks), "5a 6b 9c");
    world.tasks.note_seen(TASK, 10);
    world.tasks.apply_seen(TASK);
    assert_eq!(world.hear("d").id, 10);
}

#[test]
fn number_of_a_result_without_room_is_not_given_again() {
    let settings = Settings {
        retain: Some(300 * SECOND),
        max_retained: 2 * (RESULT_COST + 10),
        ..Default::default()
    };
    let mut world = World::new(Tasks::new(settings));
    let ids = ["a", "b", "c"].map(|text| world.hear(text).id);
    assert_eq!((ids, numbered(&world.tasks).as_str()), ([0, 1, 2], "0a"));
}

#[test]
fn stopped_task_keeps_nothing_until_a_client_returns() {
    let mut world = World::new(tasks());
    world.client(None, Some(ClientState::Waiting), None);
    world.hear("a");
    world.hear("b");
    world.hear_on(Uuid::from_u128(2), "other");
    assert_eq!(world.tasks.stop(world.now, TASK), 2);
    assert_eq!((world.status(), texts(&world.tasks).len()), (("stopped", true), 0));
    assert_eq!(world.tasks.retained(), 1, "that of the other task");
    world.client(Some(ClientState::Waiting), None, None);
    assert_eq!(world.status(), ("stopped", false));
    assert!(world.tasks.is_stopped(TASK));
    world.client(None, Some(ClientState::Waiting), None);
    assert!(world.tasks.resume(TASK) && !world.tasks.resume(TASK));
    assert_eq!(world.status(), ("waiting", true));
    assert_eq!((world.hear("c").id, texts(&world.tasks)), (2, vec!["c".to_owned()]));
    world.client(Some(ClientState::Waiting), None, None);
    world.now += 300 * SECOND;
    world.tasks.trim(world.now, |_| false);
    assert!(world.tasks.is_empty() && world.tasks.retained_bytes() == 0);
}

#[test]
fn stop_is_remembered_for_as_long_as_results_are_kept() {
    let mut world = World::new(tasks());
    world.tasks.stop(world.now, TASK);
    world.now += 299 * SECOND;
    world.tasks.trim(world.now, |_| false);
    assert_eq!(world.status(), ("stopped", false));
    world.now += SECOND;
    world.tasks.trim(world.now, |_| false);
    assert_eq!(world.status(), ("not_found", false));
}

#[test]
fn a_result_whose_audio_grows_is_in_no_queue_and_counts_from_its_end() {
    let mut world = small();
    let id = world.hear("a").id;
    world.tasks.hold(TASK, id);
    assert_eq!((world.tasks.retained.len(), world.tasks.retained()), (0, 1));
    evict_all(&mut world);
    world.now += 1000 * SECOND;
    world.tasks.trim(world.now, |_| false);
    assert_eq!(texts(&world.tasks), ["a"], "neither room nor time makes it go");
    world.tasks.release(world.now, TASK, id);
    world.tasks.release(world.now, TASK, id);
    world.tasks.trim(world.now + 299 * SECOND, |_| false);
    assert_eq!(texts(&world.tasks), ["a"]);
    world.tasks.trim(world.now + 300 * SECOND, |_| false);
    assert!(world.tasks.is_empty() && world.tasks.retained() == 0);
}

#[test]
fn a_result_that_is_held_is_released_under_the_id_that_it_had() {
    let mut world = World::new(tasks());
    world.client(None, Some(ClientState::Waiting), None);
    let id = world.hear("b").id;
    world.tasks.hold(TASK, id);
    world.look_up_numbered(&[(500, "a", 0), (2000, "b", 1)], 2);
    assert_eq!(numbered(&world.tasks), "0a 1b");
    world.tasks.release(world.now, TASK, id);
    assert_eq!((world.tasks.retained.len(), world.tasks.retained()), (2, 2));
}

#[test]
fn a_stop_drops_what_is_held_as_well() {
    let mut world = World::new(tasks());
    let id = world.hear("a").id;
    world.tasks.hold(TASK, id);
    assert_eq!(world.tasks.stop(world.now, TASK), 1);
    assert_eq!((world.tasks.retained(), world.tasks.retained_bytes()), (0, 0));
    world.tasks.release(world.now, TASK, id);
    world.tasks.trim(world.now + 300 * SECOND, |_| false);
    assert!(world.tasks.is_empty());
}

/// What is looked at of all retained results, one by one.
#[test]
fn work_of_a_stop_an_eviction_and_a_removal_does_not_grow_with_other_results() {
    const OTHERS: usize = 5000;
    let mut world = World::new(Tasks::new(Settings::default()));
    let others: Vec<Uuid> = (0..OTHERS as u128).map(|at| Uuid::from_u128(100 + at)).collect();
    let held = world.hear_on(others[0], "held").id;
    world.tasks.hold(others[0], held);
    others.iter().for_each(|task| _ = world.hear_on(*task, "x"));
    let store = SpeechStore::Memory;
    let begun = world.tasks.begin_speech(world.now, TASK, EAR, store, |_| false);
    world.tasks.end_speech(world.now, begun.unwrap().0);
    (0..5).for_each(|_| _ = world.hear("y"));
    let looked_at = |world: &World| world.tasks.retained.looked_at();

    let before = looked_at(&world);
    world.tasks.limit_speech_files(1);
    let begun = world.tasks.begin_speech(world.now, TASK, EAR, store, |_| false);
    assert!(begun.is_some() && world.tasks.evicted() == 1, "the speech made room");
    assert!(looked_at(&world) - before < 10);

    let before = looked_at(&world);
    assert_eq!(world.tasks.stop(world.now, TASK), 6, "a stream and five results");
    assert!(looked_at(&world) - before < 20);

    let before = looked_at(&world);
    for count in 1..=100 {
        world.tasks.evict_to(world.now, world.tasks.retained_bytes() - 1, |_| false);
        assert_eq!(world.tasks.evicted(), 1 + count);
    }
    assert!(looked_at(&world) - before < 1000);
}
