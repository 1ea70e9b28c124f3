//! The C header of the hostile guests says what the layout says.

#[path = "../examples/layout.rs"]
mod example;

#[test]
fn the_header_of_the_hostile_guests_is_fresh() {
    assert!(
        include_str!("../../../tests/escape/guests/layout.h") == example::header(),
        "run: cargo run -p kvmlet-abi --example layout > tests/escape/guests/layout.h"
    );
}
