//! A runtime or a machine may end a plugin at any moment.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_cni::plugin::{self, Progress, Step};
use serde_json::json;

use super::host::{Container, Host, addresses};

/// Which step is the last that this process takes.
pub(crate) const DIE_AT: &str = "CAUSEWAY_TEST_DIE_AT";

/// Kills its own process after so many steps.
struct Fate {
    left: u32,
}

impl Progress for Fate {
    fn reached(&mut self, step: Step) {
        if self.left == 0 {
            eprintln!("killed at {step:?}");
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
        self.left -= 1;
    }
}

/// The plugin's own code, up to that step.
pub(crate) fn die(step: &str) -> ExitCode {
    let mut fate = Fate {
        left: step.parse().unwrap(),
    };
    let input = std::io::read_to_string(std::io::stdin()).unwrap();
    let variable = |name: &str| std::env::var(name).ok();
    match plugin::answer(&variable, &input, &mut fate) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Calls, and kills after `step` steps; where it was killed, or nothing if it came to its end.
fn killed(host: &Host, command: &str, container: &Container, step: u32) -> Option<String> {
    let own = std::env::current_exe().unwrap();
    let config = host.config("1.1.0", &json!({}));
    let output = host.call(&own, command, Some(container), &config, Some(step));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return None;
    }
    assert_eq!(output.status.signal(), Some(9), "{said}");
    Some(said.lines().last().unwrap_or_default().to_owned())
}

pub(crate) fn an_add_that_is_killed_leaves_nothing_for_ever() {
    let host = Host::new();
    let _daemon = host.daemon(&["10.1.0.0/29", "fd00:1::/64"], true);
    let other = host.container();
    let kept = host.add(&other);
    let mut places = Vec::new();
    for step in 0.. {
        // What DEL, the same ADD again, and GC make of what is left.
        for mender in ["DEL", "ADD", "GC"] {
            let container = host.container();
            let Some(place) = killed(&host, "ADD", &container, step) else {
                host.del(&container);
                continue;
            };
            let at = format!("{place}, then {mender}");
            match mender {
                "DEL" => host.del(&container),
                "ADD" => {
                    let result = host.add(&container);
                    assert_eq!(host.devices().len(), 2, "{at}");
                    assert_eq!(host.records().attachments.len(), 2, "{at}");
                    assert!(
                        addresses(&result)
                            .iter()
                            .all(|a| !addresses(&kept).contains(a))
                    );
                    container.room.pings(addresses(&kept)[0]);
                    container.room.pings(addresses(&kept)[1]);
                    host.check(&container, &result).expect(&at);
                    host.del(&container);
                }
                _ => {
                    let valid = json!([{ "containerID": other.id, "ifname": "eth0" }]);
                    host.ask("GC", None, &json!({ "cni.dev/valid-attachments": valid }))
                        .expect(&at);
                }
            }
            assert_eq!(host.devices().len(), 1, "{at}");
            assert_eq!(host.records().attachments.len(), 1, "{at}");
            places.push(place);
        }
        if places.len() < 3 * (step as usize + 1) {
            break;
        }
    }
    places.dedup();
    let steps = [
        "Unlinked",
        "Forgotten",
        "Chosen",
        "Recorded",
        "Linked",
        "PodReady",
        "HostReady",
        "Completed",
        "Attended",
    ];
    assert_eq!(places, steps.map(|step| format!("killed at {step}")));
    host.check(&other, &kept).unwrap();
    host.del(&other);
    host.assert_empty();
}

pub(crate) fn a_del_that_is_killed_is_finished_by_the_next() {
    let host = Host::new();
    let _daemon = host.daemon(&["10.1.0.0/29"], true);
    let mut places = Vec::new();
    for step in 0.. {
        let container = host.container();
        host.add(&container);
        let Some(place) = killed(&host, "DEL", &container, step) else {
            break;
        };
        places.push(place);
        host.del(&container);
        host.assert_empty();
    }
    assert_eq!(places, ["killed at Unlinked", "killed at Forgotten"]);
}
