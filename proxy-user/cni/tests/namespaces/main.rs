//! The plugin, called as a runtime calls it, on real devices in namespaces of its own.
//!
//! What the daemon would do (say what it knows of the node, and attach its programs) is played by a
//! thread here; `tests/tests/cni` has the real one.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test may fail, and says why"
)]

mod host;
mod kills;
mod life;
mod many;
mod refuse;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    // One of the processes that end in the middle of their work.
    if let Some(step) = std::env::var_os(kills::DIE_AT) {
        return kills::die(&step.to_string_lossy());
    }
    let arguments = Arguments::from_args();
    assert!(
        arguments.list || nix::unistd::geteuid().is_root(),
        "these tests make network namespaces: run them as root"
    );
    let cases: [(&str, fn()); 9] = [
        ("life", life::a_pod_comes_and_goes),
        ("life_heals", life::what_is_broken_is_found_and_made_anew),
        (
            "life_versions",
            life::every_version_is_answered_in_its_own_form,
        ),
        (
            "kills_add",
            kills::an_add_that_is_killed_leaves_nothing_for_ever,
        ),
        (
            "kills_del",
            kills::a_del_that_is_killed_is_finished_by_the_next,
        ),
        ("many", many::fifty_at_once_get_fifty_addresses),
        (
            "many_exhausted",
            many::a_full_range_is_said_and_nothing_is_left,
        ),
        ("refuse", refuse::what_cannot_be_done_is_refused_by_number),
        ("refuse_daemon", refuse::without_the_daemon_nothing_is_added),
    ];
    let trials = cases.map(|(name, case)| {
        Trial::test(name, move || {
            std::panic::catch_unwind(case).map_err(|panic| {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                Failed::from(
                    text.or(panic.downcast_ref::<&str>().copied())
                        .unwrap_or("panic"),
                )
            })
        })
    });
    libtest_mimic::run(&arguments, trials.into()).exit_code()
}
