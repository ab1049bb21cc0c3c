//! A share as a bar of characters.

const WIDTH: usize = 30;

/// What lies outside 0 to 1 is drawn as the nearer end.
pub fn bar(share: f64) -> String {
    let width = (share.clamp(0.0, 1.0) * WIDTH as f64).round() as usize;
    "█".repeat(width) + &"·".repeat(WIDTH - width)
}
