//! Runs of huge pages: what they must be, and what must be refused.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use kleap_memmap::runs::RunsError;
use kleap_memmap::{PhysAddr, PhysRange, PhysRanges, contiguous_runs};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const PAGE_BYTES: u64 = 2 << 20;

fn page(index: u64) -> PhysAddr {
    PhysAddr::new(index * PAGE_BYTES)
}

fn pages(first: u64, after: u64) -> PhysRange {
    PhysRange::new(page(first), page(after)).unwrap()
}

#[test]
fn pages_in_any_order_become_runs() {
    let given = [page(9), page(2), page(1), page(7), page(0), page(8)];
    assert_eq!(
        contiguous_runs(&given, PAGE_BYTES),
        Ok(vec![pages(0, 3), pages(7, 10)])
    );
    assert_eq!(contiguous_runs(&[], PAGE_BYTES), Ok(vec![]));
}

#[test]
fn what_cannot_be_pages_is_refused() {
    let odd = PhysAddr::new(PAGE_BYTES + 0x1000);
    assert_eq!(
        contiguous_runs(&[page(0), odd], PAGE_BYTES),
        Err(RunsError::Misaligned {
            page: odd,
            page_size_bytes: PAGE_BYTES
        })
    );
    assert_eq!(
        contiguous_runs(&[page(3), page(1), page(2), page(3)], PAGE_BYTES),
        Err(RunsError::Duplicate { page: page(3) })
    );
    for page_size_bytes in [0, 3, PAGE_BYTES + 1] {
        assert_eq!(
            contiguous_runs(&[page(0)], page_size_bytes),
            Err(RunsError::PageSize { page_size_bytes })
        );
    }
    // The last page of the address space ends at 2^64, which a half-open range cannot say.
    let last = PhysAddr::new(u64::MAX).align_down(PAGE_BYTES);
    assert_eq!(
        contiguous_runs(&[last], PAGE_BYTES),
        Err(RunsError::Overflow {
            page: last,
            page_size_bytes: PAGE_BYTES
        })
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn runs_are_the_canonical_set(
        indices in prop::collection::btree_set(0_u64..200, 0..100).prop_map(Vec::from_iter).prop_shuffle()
    ) {
        let given: Vec<PhysAddr> = indices.iter().map(|&index| page(index)).collect();
        let set: PhysRanges = indices.iter().map(|&index| pages(index, index + 1)).collect();
        prop_assert_eq!(contiguous_runs(&given, PAGE_BYTES).unwrap(), set.as_slice());
    }

    #[test]
    fn never_panics(given in prop::collection::vec(any::<u64>(), 0..8), page_size_bytes in any::<u64>()) {
        let given: Vec<PhysAddr> = given.into_iter().map(PhysAddr::new).collect();
        let _ = contiguous_runs(&given, page_size_bytes);
        let _ = contiguous_runs(&given, 1);
    }
}
