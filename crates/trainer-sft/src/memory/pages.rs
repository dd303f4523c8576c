//! The pages that CubeCL takes from a card's driver.
//!
//! `cubecl-server` 0.11 has a pool of 8 MiB pages for allocations up to 64 KiB. It carves every other allocation, first fit, from
//! pages as large as the largest allocation so far. Pages of an older size take nothing new, and go back once they are empty.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The largest allocation of the pool of small ones.
const SMALL: u64 = 64 * KIB;
/// Pages of that pool, and the smallest pages of the others.
const SMALL_PAGE: u64 = 8 * MIB;
const MIN_PAGE: u64 = 2 * MIB;
/// Allocations begin and end at multiples of this.
pub(super) const ALIGNMENT: u64 = 512;

/// A place in a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slice {
    /// `None` for a small allocation, and for one of its own.
    page: Option<usize>,
    is_own: bool,
    start: u64,
    /// What was asked for, in whole multiples of [`ALIGNMENT`].
    pub(super) len: u64,
}

#[derive(Debug)]
struct Page {
    size: u64,
    /// Start and end of what is taken, in order.
    taken: Vec<(u64, u64)>,
}

impl Page {
    /// Takes the first gap of `len` bytes.
    fn take(&mut self, len: u64) -> Option<u64> {
        let mut start = 0;
        let mut place = self.taken.len();
        for (index, &(from, to)) in self.taken.iter().enumerate() {
            if from - start >= len {
                place = index;
                break;
            }
            start = to;
        }
        if place == self.taken.len() && self.size - start < len {
            return None;
        }
        self.taken.insert(place, (start, start + len));
        Some(start)
    }
}

/// All pages of a process.
#[derive(Debug)]
pub(super) struct Pages {
    /// `None` where a page went back.
    pages: Vec<Option<Page>>,
    /// Of new pages.
    size: u64,
    /// Bytes of small allocations now, and at most.
    small: [u64; 2],
    /// Bytes of allocations that are in no page.
    own: u64,
}

/// Bytes of which a driver gives whole multiples.
fn of_driver(bytes: u64) -> u64 {
    bytes.next_multiple_of(MIN_PAGE)
}

impl Default for Pages {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            size: MIN_PAGE,
            small: [0; 2],
            own: 0,
        }
    }
}

impl Pages {
    /// Takes pages of a size that `largest` fits into from now on.
    pub(super) fn grow(&mut self, largest: u64) {
        if largest.next_multiple_of(ALIGNMENT) <= self.size {
            return;
        }
        self.size = (largest + MIB).next_multiple_of(MIB);
        for page in &mut self.pages {
            page.take_if(|page| page.taken.is_empty());
        }
    }

    /// Allocates outside of the pages.
    pub(super) fn take_own(&mut self, bytes: u64) -> Slice {
        let len = bytes.max(1).next_multiple_of(ALIGNMENT);
        self.own += of_driver(len);
        Slice {
            page: None,
            is_own: true,
            start: 0,
            len,
        }
    }

    /// Allocates.
    pub(super) fn take(&mut self, bytes: u64) -> Slice {
        let len = bytes.max(1).next_multiple_of(ALIGNMENT);
        if bytes <= SMALL {
            self.small[0] += len;
            self.small[1] = self.small[1].max(self.small[0]);
            return Slice {
                page: None,
                is_own: false,
                start: 0,
                len,
            };
        }
        self.grow(bytes);
        let size = self.size;
        let current = self.pages.iter_mut().enumerate();
        let mut current = current.filter_map(|(index, page)| Some((index, page.as_mut()?)));
        let found = current.find_map(|(index, page)| {
            let start = (page.size == size).then(|| page.take(len))??;
            Some((index, start))
        });
        let (page, start) = found.unwrap_or_else(|| {
            let taken = vec![(0, len)];
            self.pages.push(Some(Page { size, taken }));
            (self.pages.len() - 1, 0)
        });
        Slice {
            page: Some(page),
            is_own: false,
            start,
            len,
        }
    }

    /// Frees.
    pub(super) fn give_back(&mut self, slice: &Slice) {
        let Some(index) = slice.page else {
            match slice.is_own {
                true => self.own -= of_driver(slice.len),
                false => self.small[0] -= slice.len,
            }
            return;
        };
        if let Some(page) = &mut self.pages[index] {
            page.taken.retain(|&(start, _)| start != slice.start);
            if page.taken.is_empty() && page.size != self.size {
                self.pages[index] = None;
            }
        }
    }

    /// Bytes that the driver has given.
    pub(super) fn num_bytes(&self) -> u64 {
        let pages = self.pages.iter().flatten().map(|page| page.size);
        pages.sum::<u64>() + self.small[1].next_multiple_of(SMALL_PAGE) + self.own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_taken_before_pages() {
        let mut pages = Pages::default();
        let first = pages.take(MIB);
        let second = pages.take(MIB / 2);
        assert_eq!(pages.num_bytes(), 2 * MIB);
        pages.give_back(&first);
        assert_eq!(pages.take(MIB / 2).start, 0);
        assert_eq!(pages.take(MIB / 2).start, MIB / 2);
        assert_eq!(pages.take(MIB).page, Some(1));
        assert_eq!(pages.num_bytes(), 4 * MIB);
        pages.give_back(&second);
    }

    #[test]
    fn pages_of_an_older_size_go_back_once_they_are_empty() {
        let mut pages = Pages::default();
        let (first, second) = (pages.take(MIB), pages.take(2 * MIB));
        pages.give_back(&first);
        let large = pages.take(9 * MIB);
        // One page of two stayed, one of ten came.
        assert_eq!(pages.num_bytes(), 12 * MIB);
        pages.give_back(&second);
        assert_eq!(pages.num_bytes(), 10 * MIB);
        pages.give_back(&large);
        assert_eq!(pages.num_bytes(), 10 * MIB, "of the size of today");
    }

    #[test]
    fn an_allocation_of_its_own_is_in_no_page() {
        let mut pages = Pages::default();
        let own = pages.take_own(3 * MIB);
        assert_eq!(pages.num_bytes(), 4 * MIB);
        pages.take(MIB);
        assert_eq!(pages.num_bytes(), 6 * MIB);
        pages.give_back(&own);
        assert_eq!(pages.num_bytes(), 2 * MIB);
    }

    #[test]
    fn small_allocations_have_pages_of_their_own() {
        let mut pages = Pages::default();
        let small = pages.take(64 * KIB);
        assert_eq!(pages.num_bytes(), 8 * MIB);
        pages.give_back(&small);
        pages.take(64 * KIB + 1);
        assert_eq!(pages.num_bytes(), 10 * MIB);
    }
}
