//! Cases that cannot be played on devices.

use anyhow::{Result, ensure};

use crate::case::Case;

/// A case that is left out.
struct LeftOut {
    /// Theme and name.
    case: &'static str,
    /// In how many families there is one.
    families: usize,
    reason: &'static str,
}

const LEFT_OUT: &[LeftOut] = &[LeftOut {
    case: "header::truncated_tags_pass",
    families: 2,
    reason: "the kernel drops a frame that ends in a VLAN tag before TC or a socket sees it (skb_vlan_untag)",
}];

/// Why a case is left out; none: it is played.
#[must_use]
pub fn reason(case: &str) -> Option<&'static str> {
    let (case, _family) = case.rsplit_once("::")?;
    let mut known = LEFT_OUT.iter();
    Some(known.find(|left| left.case == case)?.reason)
}

/// Fails unless just the cases that are named here are left out. Says how many are played, and how many
/// are not.
pub fn count(cases: &[Case]) -> Result<(usize, usize)> {
    for left in LEFT_OUT {
        let reason = reason(&format!("{}::v4", left.case));
        ensure!(
            reason == Some(left.reason) && !left.reason.is_empty(),
            "{} is named twice, or for no reason",
            left.case
        );
        let of_name = |case: &&Case| {
            let name = case.name.rsplit_once("::");
            name.is_some_and(|(name, _family)| name == left.case)
        };
        let found = cases.iter().filter(of_name).count();
        ensure!(
            found == left.families,
            "{} is to be left out {} times, and is there {found} times",
            left.case,
            left.families
        );
    }
    let left = LEFT_OUT.iter().map(|left| left.families).sum();
    let played = cases.iter().filter(|case| reason(&case.name).is_none());
    let played = played.count();
    ensure!(
        played + left == cases.len(),
        "{played} cases are played and {left} are left out, of {}",
        cases.len()
    );
    Ok((played, left))
}
