//! Ctrl-C. Normally it ends the program at once with exit code 130; work that can stop in an orderly way says so with
//! [`listen`], polls [`pressed`], and is ended at once only by a second Ctrl-C.

use crate::error::INTERRUPTED;
use std::sync::atomic::{AtomicBool, Ordering};

static LISTENING: AtomicBool = AtomicBool::new(false);
static PRESSED: AtomicBool = AtomicBool::new(false);

/// Begins to watch for Ctrl-C, and for the signals that ask a program to end.
pub fn install() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if !LISTENING.load(Ordering::SeqCst) || PRESSED.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })?;
    Ok(())
}

/// As long as it lives, Ctrl-C only sets [`pressed`].
pub struct Listening(());

/// Makes Ctrl-C set a flag instead of ending the program.
pub fn listen() -> Listening {
    PRESSED.store(false, Ordering::SeqCst);
    LISTENING.store(true, Ordering::SeqCst);
    Listening(())
}

impl Drop for Listening {
    fn drop(&mut self) {
        LISTENING.store(false, Ordering::SeqCst);
        PRESSED.store(false, Ordering::SeqCst);
    }
}

/// The flag.
pub fn flag() -> &'static AtomicBool {
    &PRESSED
}

/// Whether Ctrl-C came since [`listen`].
pub fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst)
}
