//! Go targets: what their runtimes know, read at each snapshot and compared with earlier readings.

mod code;
mod connections;
mod reading;
mod runtime;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use reading::GoReading;
pub use reading::GoReadings;
use runtime::Runtime;

use super::space::Space;
use crate::{
    go::GoBinaries,
    snapshot::{GoState, GoWishes},
    target::{Backing, Mapping},
};

/// Earlier readings to compare with.
#[derive(Clone, Copy, Debug)]
pub struct Before<'r> {
    pub readings: &'r GoReadings,
    /// How long ago they were made.
    pub ago: Duration,
}

/// The Go runtimes of the traced processes.
#[derive(Debug, Default)]
pub struct Runtimes {
    /// By the number of the address space; `None` if there is none.
    known: HashMap<u32, Option<Runtime>>,
    /// Shared with whoever names code.
    binaries: GoBinaries,
}

impl Runtimes {
    /// Looks whether an address space has a Go runtime, and enables its heap profile if that is wanted.
    pub fn discover(&mut self, space: &Space, wishes: &GoWishes) {
        if !wishes.any() || self.known.contains_key(&space.id) {
            return;
        }
        let (Some(process), Some(mapping)) = (&space.process, program(space)) else {
            return;
        };
        let binary = match &mapping.backing {
            Backing::File(file) => self.binaries.open(file),
            _ => None,
        };
        let mut runtime = binary.map(|binary| Runtime::new(Arc::clone(process), &mapping, binary));
        if let (Some(runtime), Some(rate)) = (&mut runtime, wishes.enable) {
            runtime.enable(rate);
        }
        self.known.insert(space.id, runtime);
    }

    /// Enables heap profiles of runtimes that were only starting before; to be called now and then.
    pub fn enable_awaited(&mut self) {
        self.known
            .values_mut()
            .flatten()
            .for_each(Runtime::enable_awaited);
    }

    /// The version of the runtime of an address space, if it has one that can be read.
    pub fn version(&self, space: u32) -> Option<&str> {
        self.known.get(&space)?.as_ref()?.version()
    }

    /// Why what is wanted of a Go runtime cannot be had of an address space, if it cannot.
    pub fn refusal(&self, space: u32, wishes: &GoWishes) -> Option<String> {
        match self.known.get(&space)? {
            Some(runtime) => runtime.refusal(),
            None if wishes.enable.is_some() => Some(
                "Go's heap profile cannot be enabled (--go-enable-heap): this program has no Go runtime"
                    .into(),
            ),
            None => None,
        }
    }

    /// Whether an address space has a Go runtime, whether it can be read or not.
    pub fn has_runtime(&self, space: u32) -> bool {
        self.known.get(&space).is_some_and(Option::is_some)
    }

    /// An address in the Go heap of an address space, if there is one that can be read.
    pub fn heap_address(&self, space: u32) -> Option<u64> {
        self.known.get(&space)?.as_ref()?.heap_address()
    }

    /// Forgets an address space that is no more.
    pub fn forget(&mut self, space: u32) {
        self.known.remove(&space);
    }

    /// The state of a runtime now, and how it changed; `None` if the process has none, or nothing of it is wanted.
    pub fn state(&self, space: &Space, wishes: &GoWishes, before: Option<Before<'_>>) -> Option<GoState> {
        Some(self.reading(space, wishes, before)?.state)
    }

    /// A reading of every runtime, to compare later ones with, and how it changed since.
    pub fn read<'r>(
        &self,
        spaces: &BTreeMap<u32, Space>,
        wishes: &GoWishes,
        before: impl Fn(&Space) -> Option<Before<'r>>,
    ) -> GoReadings {
        let reading = |space: &Space| Some((space.id, self.reading(space, wishes, before(space))?));
        spaces.values().filter_map(reading).collect()
    }

    fn reading(&self, space: &Space, wishes: &GoWishes, before: Option<Before<'_>>) -> Option<GoReading> {
        let runtime = self.known.get(&space.id)?.as_ref()?;
        let earlier = before.and_then(|before| Some((before.readings.get(&space.id)?, before.ago)));
        Some(runtime.read(&space.reader.mappings(), wishes, earlier))
    }

    /// The programs that were opened.
    pub fn binaries(&self) -> GoBinaries {
        self.binaries.clone()
    }
}

/// The mapping of the program itself.
fn program(space: &Space) -> Option<Arc<Mapping>> {
    let mut live = space.reader.live();
    live.find(|mapping| mapping.path == space.info.executable)
        .cloned()
}
