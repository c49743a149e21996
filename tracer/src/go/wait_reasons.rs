//! Why a goroutine waits: the texts of `waitReasonStrings` (`runtime2.go`) in the order of each version's constants.

/// Go 1.19.
pub(super) const GO_1_19: &[&str] = &join::<27>(&[
    BEGINNING,
    NIL_CHANNEL,
    HEAP,
    SELECT,
    COLLECTOR,
    CHANNEL,
    FINALIZER,
    SLEEP,
    CONDITION,
    TIMER,
    IDLE,
    PREEMPTED,
]);

/// Go 1.21 to 1.23: each of these appends to the one before.
pub(super) const GO_1_23: &[&str] = &join::<38>(&[
    BEGINNING,
    NIL_CHANNEL,
    HEAP,
    SELECT,
    COLLECTOR,
    CHANNEL,
    FINALIZER,
    SLEEP,
    CONDITION,
    MUTEX,
    IDLE,
    ACTIVE,
    PREEMPTED,
    STOPPED,
]);

/// Go 1.24.
pub(super) const GO_1_24: &[&str] = &join::<44>(&[
    BEGINNING,
    NIL_CHANNEL,
    HEAP,
    SELECT,
    COLLECTOR,
    CHANNEL,
    FINALIZER,
    SLEEP,
    CONDITION,
    MUTEX,
    GROUP,
    IDLE,
    ACTIVE,
    PREEMPTED,
    STOPPED,
    SYNCTEST,
    IN_SYNCTEST,
]);

/// Go 1.25.
pub(super) const GO_1_25: &[&str] = &join::<47>(&[
    BEGINNING,
    NIL_CHANNEL,
    HEAP,
    SELECT,
    COLLECTOR,
    CHANNEL,
    FINALIZER,
    UPDATER,
    SLEEP,
    CONDITION,
    MUTEX,
    GROUP,
    IDLE,
    ACTIVE,
    PREEMPTED,
    STOPPED,
    SYNCTEST,
    DURABLE,
]);

/// Go 1.26 and 1.27.
pub(super) const GO_1_26: &[&str] = &join::<47>(&[
    BEGINNING,
    HEAP,
    COLLECTOR,
    FINALIZER,
    UPDATER,
    SLEEP,
    NIL_CHANNEL,
    SELECT_1_26,
    CHANNEL,
    CONDITION,
    MUTEX,
    GROUP,
    IDLE,
    ACTIVE,
    PREEMPTED,
    STOPPED,
    SYNCTEST,
    DURABLE,
]);

// Reasons that follow one another in every version, or came in one.
const BEGINNING: &[&str] = &["", "GC assist marking", "IO wait"];
const NIL_CHANNEL: &[&str] = &["chan receive (nil chan)", "chan send (nil chan)"];
const HEAP: &[&str] = &[
    "dumping heap",
    "garbage collection",
    "garbage collection scan",
    "panicwait",
];
const SELECT: &[&str] = &["select", "select (no cases)"];
const SELECT_1_26: &[&str] = &["select (no cases)", "select"];
const COLLECTOR: &[&str] = &["GC assist wait", "GC sweep wait", "GC scavenge wait"];
const CHANNEL: &[&str] = &["chan receive", "chan send"];
const FINALIZER: &[&str] = &["finalizer wait", "force gc (idle)"];
const UPDATER: &[&str] = &["GOMAXPROCS updater (idle)"];
const SLEEP: &[&str] = &["semacquire", "sleep"];
const CONDITION: &[&str] = &["sync.Cond.Wait"];
const TIMER: &[&str] = &["timer goroutine (idle)"];
const MUTEX: &[&str] = &["sync.Mutex.Lock", "sync.RWMutex.RLock", "sync.RWMutex.Lock"];
const GROUP: &[&str] = &["sync.WaitGroup.Wait"];
const IDLE: &[&str] = &["trace reader (blocked)", "wait for GC cycle", "GC worker (idle)"];
const ACTIVE: &[&str] = &["GC worker (active)"];
const PREEMPTED: &[&str] = &["preempted", "debug call"];
const STOPPED: &[&str] = &[
    "GC mark termination",
    "stopping the world",
    "flushing proc caches",
    "trace goroutine status",
    "trace proc status",
    "page trace flush",
    "coroutine",
    "GC weak to strong wait",
];
const SYNCTEST: &[&str] = &["synctest.Run", "synctest.Wait"];
const IN_SYNCTEST: &[&str] = &[
    "chan receive (synctest)",
    "chan send (synctest)",
    "select (synctest)",
];
const DURABLE: &[&str] = &[
    "chan receive (durable)",
    "chan send (durable)",
    "select (durable)",
    "sync.WaitGroup.Wait (durable)",
    "cleanup wait",
];

/// All of these, which are so many.
const fn join<const COUNT: usize>(parts: &[&[&'static str]]) -> [&'static str; COUNT] {
    let mut all = [""; COUNT];
    let (mut count, mut part) = (0, 0);
    while part < parts.len() {
        let mut index = 0;
        while index < parts[part].len() {
            all[count] = parts[part][index];
            (count, index) = (count + 1, index + 1);
        }
        part += 1;
    }
    assert!(count == COUNT, "a list has another length");
    all
}
