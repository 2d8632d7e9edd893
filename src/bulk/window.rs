//! Decides how many requests may run at once.
//!
//! If the service is too busy for a picture, or unreachable, half as many requests may run at once. With
//! each success, the number slowly grows again. Without this limit, pictures that the service cannot accept
//! now would be sent again and again. TCP avoids congestion in the same way (RFC 5681).

/// The number of requests that may run at once.
#[derive(Debug)]
pub(super) struct Window {
    max_size: usize,
    /// Not an integer, because a success adds less than one.
    size: f64,
    halvings: u64,
}

impl Window {
    /// A window with `max_size` as its initial and its largest size.
    pub(super) fn new(max_size: usize) -> Self {
        Self { max_size, size: max_size as f64, halvings: 0 }
    }

    /// The number of requests that may run at once. At least one.
    pub(super) fn size(&self) -> usize {
        (self.size as usize).clamp(1, self.max_size)
    }

    /// The number of halvings so far. Each request stores the number at its start, for
    /// [`Self::halve_after_refusal`].
    pub(super) fn halvings(&self) -> u64 {
        self.halvings
    }

    /// Halves the window, because the service was too busy for a request, or unreachable. Does nothing if the
    /// window has been halved since the start of that request: requests that run at the same time are often
    /// refused together.
    pub(super) fn halve_after_refusal(&mut self, halvings_at_start: u64) {
        if halvings_at_start == self.halvings {
            self.halvings += 1;
            self.size = (self.size / 2.0).max(1.0);
        }
    }

    /// Lets the window grow a little, because a request succeeded: a window of size `n` grows by one with
    /// about `n` successes. `running` is the number of requests that ran, including this one. If they did
    /// not fill the window, it stays: the success does not show that the service can accept more.
    pub(super) fn grow_after_success(&mut self, running: usize) {
        if running >= self.size() {
            self.size = (self.size + 1.0 / self.size).min(self.max_size as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_are_refused_together_halve_the_window_once() {
        let mut window = Window::new(8);
        for _ in 0..8 {
            window.halve_after_refusal(0);
        }
        assert_eq!((window.size(), window.halvings()), (4, 1));
    }

    #[test]
    fn a_window_never_becomes_smaller_than_one() {
        let mut window = Window::new(8);
        for halvings in 0..9 {
            window.halve_after_refusal(halvings);
        }
        assert_eq!(window.size(), 1);
    }

    #[test]
    fn the_window_grows_by_one_after_enough_successes_and_never_above_its_limit() {
        let mut window = Window::new(6);
        window.halve_after_refusal(0);
        assert_eq!(window.size(), 3);
        // Two requests do not fill the window of three, so this success does not count.
        window.grow_after_success(2);
        (0..3).for_each(|_| window.grow_after_success(3));
        assert_eq!(window.size(), 3, "three successes should not quite be enough");
        window.grow_after_success(3);
        assert_eq!(window.size(), 4);
        (0..1000).for_each(|_| window.grow_after_success(6));
        assert_eq!(window.size(), 6);
    }
}
