//! The tests, in the order in which they run.

mod errors;
mod lifecycle;
mod load;
mod operations;
mod processes;
mod scenes;
mod watching;

use super::Test;

/// Tests without which the others have nothing to look at.
pub const ALWAYS: [&str; 2] = ["starts", "sigterm_detaches"];

/// Tests that take long, and whether they pass does not hang on how the programs are attached: on every kernel, in one mode each,
/// unless they are asked for by name.
pub const IN_ONE_MODE: [(&str, &str); 6] = [
    ("wrong_layouts_are_refused", "fentry"),
    ("writes_are_always_watched_if_told", "fentry"),
    ("check_says_that_run_would_work", "kprobe"),
    ("the_service_runs_without_root", "kprobe"),
    ("a_container_is_tracked_alone", "kprobe"),
    ("what_cannot_be_attached_is_said", "kprobe"),
];

macro_rules! tests {
    ($($module:ident :: $name:ident),* $(,)?) => {
        vec![$(Test { name: stringify!($name), run: $module::$name }),*]
    };
}

/// All tests.
pub fn all() -> Vec<Test> {
    tests![
        errors::unknown_flag_is_a_usage_error,
        errors::not_root_is_named,
        errors::port_in_use_is_named,
        errors::no_btf_is_named,
        errors::check_says_that_run_would_work,
        errors::wrong_layouts_are_refused,
        operations::the_service_runs_without_root,
        operations::the_least_privileges_are_enough,
        operations::a_container_is_tracked_alone,
        watching::writes_are_watched_on_demand,
        watching::writes_are_always_watched_if_told,
        watching::what_cannot_be_attached_is_said,
        lifecycle::starts,
        lifecycle::verdicts_are_as_expected,
        processes::armed_before_the_start_is_adopted,
        scenes::seed,
        scenes::private,
        scenes::shared,
        scenes::zero_pages,
        scenes::huge,
        scenes::shared_file,
        scenes::private_file,
        scenes::memfd,
        scenes::mprotect,
        scenes::mprotect_shared,
        scenes::mprotect_split,
        scenes::fork,
        scenes::huge_fork,
        scenes::unshare,
        scenes::vfork,
        scenes::threads,
        processes::clear_by_another_process_is_attributed,
        processes::untracked_process_adds_nothing,
        processes::exec_ends_the_epoch,
        processes::exit_ends_the_epoch,
        processes::reused_mm_is_a_new_address_space,
        processes::each_epoch_has_its_own_counts,
        lifecycle::nothing_was_lost,
        load::counts_are_exact_under_load,
        lifecycle::sigterm_detaches,
        lifecycle::kill_detaches,
    ]
}
