//! Decides how many requests may run at once.
//!
//! After a busy service has refused a picture, half as many requests may run at once. With each success,
//! the number slowly grows again. Without this limit, pictures that the service cannot accept now would
//! be sent again and again. TCP avoids congestion in the same way (RFC 5681).

/// The number of requests that may run at once.
#[derive(Debug)]
pub(super) struct Window {
    max_size: usize,
    /// A fraction, because a success adds less than one.
    size: f64,
    round: u64,
}

impl Window {
    /// A window with `max_size` as its initial and its largest size.
    pub(super) fn new(max_size: usize) -> Self {
        Self { max_size, size: max_size as f64, round: 0 }
    }

    /// The number of requests that may run at once. At least one.
    pub(super) fn size(&self) -> usize {
        (self.size as usize).clamp(1, self.max_size)
    }

    /// The current round. Each reduction begins a new one. A request belongs to the round in which it
    /// starts.
    pub(super) fn round(&self) -> u64 {
        self.round
    }

    /// Halves the window, because the service was too busy for a request of this round. Requests that run
    /// at the same time are often refused together: they halve the window once.
    pub(super) fn refused(&mut self, round: u64) {
        if round == self.round {
            self.round += 1;
            self.size = (self.size / 2.0).max(1.0);
        }
    }

    /// Reports a success. After about as many successes as the size of the window, the window has grown
    /// by one. `running` is the number of requests that ran, including the one that succeeded. If they did
    /// not fill the window, the success does not show that the service can accept more.
    pub(super) fn succeeded(&mut self, running: usize) {
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
            window.refused(0);
        }
        assert_eq!((window.size(), window.round()), (4, 1));
        for round in 1..9 {
            window.refused(round);
        }
        assert_eq!(window.size(), 1, "a window should never be empty");
    }

    #[test]
    fn the_window_grows_by_one_after_enough_successes_and_never_above_its_limit() {
        let mut window = Window::new(6);
        window.refused(0);
        assert_eq!(window.size(), 3);
        // Two requests do not fill the window of three, so this success does not count.
        window.succeeded(2);
        (0..3).for_each(|_| window.succeeded(3));
        assert_eq!(window.size(), 3, "three successes should not quite be enough");
        window.succeeded(3);
        assert_eq!(window.size(), 4);
        (0..1000).for_each(|_| window.succeeded(6));
        assert_eq!(window.size(), 6);
    }
}
