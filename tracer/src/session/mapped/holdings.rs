//! What code has mapped, as it is shown.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use memtrace_ebpf::{handles::MappingKind, layout::EndReason};

use super::{Account, Balance, Held, Survey, instances::Owner};
use crate::{
    snapshot::{ConnectionLoops, Holder, Holdings, Maker},
    text,
};

/// A stack that mapped something, as the kernel's books have it.
#[derive(Clone, Debug)]
pub struct MapStack {
    /// Its index.
    pub id: u32,
    /// What it mapped; `None` if it moved what was there, of whichever kind that was.
    pub kind: Option<MappingKind>,
    /// The stack, innermost frame first.
    pub frames: Vec<u64>,
    /// Why the walk of this stack stopped.
    pub end: EndReason,
    /// Bytes mapped since tracing began.
    pub mapped_bytes: u64,
    /// Whether this address space mapped them. What is from before the fork that made it is its parent's.
    pub own: bool,
}

/// What holdings are made from, beside the survey.
#[derive(Clone, Copy)]
pub struct HoldingsInput<'a> {
    /// The stacks of the address space and of those that it was forked from.
    pub stacks: &'a [MapStack],
    /// Whether a stack is in an allocator, by its names. The heap profile has what these mapped.
    pub is_allocator: &'a dyn Fn(u32) -> bool,
    /// The time (`CLOCK_MONOTONIC`, nanoseconds).
    pub now: u64,
    /// What was held at the earlier reading, if there is one.
    pub earlier: Option<&'a Held>,
}

/// A holder in the making.
struct Draft {
    holder: Holder,
    balance: Balance,
}

/// What tells holders apart.
type Key = (Owner, MappingKind, bool, bool);

impl Survey {
    /// Whether the heap profile has what this account has.
    pub(super) fn is_heap(&self, account: &Account, is_allocator: &dyn Fn(u32) -> bool) -> bool {
        matches!(account.owner, Owner::Stack(stack) if is_allocator(stack))
    }

    /// The mappings by who made them, without those of allocators, of `brk`, of the first thread's stack and of the kernel.
    pub fn holdings(&self, input: &HoldingsInput<'_>) -> Holdings {
        let stacks: HashMap<u32, &MapStack> = input.stacks.iter().map(|stack| (stack.id, stack)).collect();
        let mut drafts: HashMap<Key, Draft> = HashMap::new();
        for stack in input.stacks.iter().filter(|stack| stack.own) {
            for (kind, made) in self.made(stack) {
                let account = Account::of(Owner::Stack(stack.id), kind);
                if made > 0 && !self.is_heap(&account, input.is_allocator) {
                    let draft = draft(&mut drafts, &account, &stacks);
                    draft.holder.made = made;
                }
            }
        }
        let is_earlier = input.earlier.is_some();
        let earlier = input.earlier.into_iter().flat_map(|held| held.keys());
        let accounts: HashSet<&Account> = self.accounts.keys().chain(earlier).collect();
        for account in accounts {
            if !is_shown(account) || self.is_heap(account, input.is_allocator) {
                continue;
            }
            let draft = draft(&mut drafts, account, &stacks);
            draft
                .balance
                .add(&self.accounts.get(account).copied().unwrap_or_default());
            if is_earlier {
                let held = |held: &Held| held.get(account).copied().unwrap_or(0) as i64;
                draft.holder.recent_change += held(&self.held) - input.earlier.map_or(0, held);
            }
        }
        Holdings {
            holders: drafts
                .into_values()
                .filter_map(|draft| draft.finish(input.now))
                .collect(),
            warning: None,
            losses: self.losses(),
            notes: self.notes(),
        }
    }

    /// The bytes that a stack mapped, by kind.
    fn made(&self, stack: &MapStack) -> Vec<(MappingKind, u64)> {
        if let Some(kind) = stack.kind {
            let unbooked = self.unbooked.get(&stack.id).copied().unwrap_or(0);
            return vec![(kind, stack.mapped_bytes + unbooked)];
        }
        let moved = self.moved.get(&stack.id).copied().unwrap_or_default();
        let kinds = moved.into_iter().zip(0..);
        kinds
            .map(|(bytes, kind)| (MappingKind::from_u8(kind), bytes))
            .collect()
    }

    fn losses(&self) -> Vec<(u64, String)> {
        let what = format!("unmappings not seen ({})", text::bytes(self.missed.bytes));
        let missed = (self.missed.pieces, what);
        Vec::from_iter((missed.0 > 0).then_some(missed))
    }

    /// Tells that resident bytes are estimates, if they are.
    pub(super) fn notes(&self) -> Vec<String> {
        let note = "How much of a mapping is in memory is an estimate for very large ones: this kernel (before Linux 6.7) \
             has no quick way to look through them.";
        Vec::from_iter(self.estimated.then(|| note.to_owned()))
    }
}

impl Balance {
    fn add(&mut self, other: &Self) {
        self.held += other.held;
        self.objects += other.objects;
        self.resident += other.resident;
        self.born_sum += other.born_sum;
        self.timed += other.timed;
    }
}

impl Draft {
    /// The holder, if it holds or made anything.
    fn finish(self, now: u64) -> Option<Holder> {
        let Self { mut holder, balance } = self;
        holder.held = balance.held;
        holder.held_objects = balance.objects;
        holder.resident = balance.resident;
        let ages = (u128::from(now) * u128::from(balance.timed)).saturating_sub(balance.born_sum);
        let mean = ages / u128::from(balance.timed.max(1));
        holder.mean_age = Duration::from_nanos(u64::try_from(mean).unwrap_or(u64::MAX));
        (holder.held > 0 || holder.made > 0).then_some(holder)
    }
}

/// The draft that an account belongs to.
fn draft<'a>(
    drafts: &'a mut HashMap<Key, Draft>,
    account: &Account,
    stacks: &HashMap<u32, &MapStack>,
) -> &'a mut Draft {
    let stack = match account.owner {
        Owner::Stack(id) => stacks.get(&id),
        _ => None,
    };
    let (owner, maker) = match (account.owner, stack) {
        (Owner::Stack(_), Some(_)) => (account.owner, Maker::Code),
        (Owner::Before, _) => (Owner::Before, Maker::BeforeTracing),
        // A stack that was lost is one that nobody knows.
        _ => (Owner::Untraced, Maker::UntracedCall),
    };
    let inherited = stack.map_or(account.inherited, |stack| !stack.own);
    let key = (owner, account.kind, account.cached, inherited);
    drafts.entry(key).or_insert_with(|| Draft {
        holder: Holder {
            kind: account.kind.name(),
            maker,
            frames: stack.map_or_else(Vec::new, |stack| stack.frames.clone()),
            end: stack.map_or(EndReason::Complete, |stack| stack.end),
            inherited,
            cached: account.cached,
            made: 0,
            held: 0,
            held_objects: 0,
            resident: 0,
            mean_age: Duration::ZERO,
            recent_change: 0,
            loops: ConnectionLoops::default(),
        },
        balance: Balance::default(),
    })
}

fn is_shown(account: &Account) -> bool {
    matches!(account.owner, Owner::Stack(_) | Owner::Before | Owner::Untraced)
}
