//! Counts of known allocations. One test, since counts are of the whole process.

use mec_profile::{MemoryUse, PeakAlloc, measure};

#[global_allocator]
static ALLOC: PeakAlloc = PeakAlloc;

const MIB: usize = 1 << 20;

#[test]
fn known_allocations_are_counted() {
    // Live together, then in turn.
    let (_, together) = measure(|| (vec![0u8; MIB], vec![1u8; MIB]));
    assert_eq!(together, MemoryUse { peak: 2 * MIB, retained: 2 * MIB as isize, allocations: 2 });
    let (_, in_turn) = measure(|| {
        drop(vec![0u8; MIB]);
        drop(vec![1u8; MIB]);
    });
    assert_eq!(in_turn, MemoryUse { peak: MIB, retained: 0, allocations: 2 });

    // A block that grows is live twice.
    let mut block = Vec::<u8>::with_capacity(MIB);
    let ((), grown) = measure(|| block.reserve_exact(3 * MIB));
    assert_eq!(grown, MemoryUse { peak: 3 * MIB, retained: 2 * MIB as isize, allocations: 1 });
    assert!(PeakAlloc::peak() >= 4 * MIB);

    // What was live before is not charged, and may be given back.
    let ((), freed) = measure(|| drop(block));
    assert_eq!(freed, MemoryUse { peak: 0, retained: -3 * MIB as isize, allocations: 0 });

    // Other threads count.
    let (block, elsewhere) = measure(|| std::thread::spawn(|| vec![0u8; 8 * MIB]).join().unwrap());
    assert!(elsewhere.peak >= 8 * MIB && elsewhere.peak < 8 * MIB + 64 * 1024, "{elsewhere:?}");
    assert!(PeakAlloc::current() >= block.len());
}
