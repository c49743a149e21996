//! ELF images that are read from the memory of processes, such as the vDSO: one copy of each, however many processes have it.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// What stands for the device in [`Mapping::file_id`] of an image. No file is on it: the kernel's numbers of devices have 12
/// bits and 20 (`include/linux/kdev_t.h`).
///
/// [`Mapping::file_id`]: super::Mapping::file_id
const DEVICE: u64 = u64::MAX;

/// The images that somebody has now.
static IMAGES: Mutex<Images> = Mutex::new(Images {
    known: Vec::new(),
    last: 0,
});

struct Images {
    known: Vec<(u64, Weak<[u8]>)>,
    last: u64,
}

/// The copy of this image that all share, and what stands for its device and inode. Images are told apart by all of their
/// bytes, since a process may write to its own.
pub(super) fn share(image: &[u8]) -> (Arc<[u8]>, (u64, u64)) {
    // No holder of the lock can leave it half changed.
    let mut images = IMAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let found = images.known.iter().find_map(|(number, known)| {
        let known = known.upgrade()?;
        (*known == *image).then_some((known, (DEVICE, *number)))
    });
    if let Some(found) = found {
        return found;
    }
    images.known.retain(|(_, known)| known.strong_count() > 0);
    images.last += 1;
    let number = images.last;
    let new: Arc<[u8]> = image.into();
    images.known.push((number, Arc::downgrade(&new)));
    (new, (DEVICE, number))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::share;

    #[test]
    fn equal_images_are_one() {
        let (first, id) = share(b"an image of this test");
        let (again, same) = share(b"an image of this test");
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(id, same);
        let (_, other) = share(b"another image of this test");
        assert_ne!(id, other);
        drop((first, again));
        let (_, later) = share(b"an image of this test");
        assert_ne!(id, later, "a number is not used again");
    }
}
