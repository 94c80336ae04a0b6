//! The limit on locked memory, which counts maps and programs before Linux 5.11 (commit
//! 97306be45fbe).

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::utsname::uname;

/// Raises the limit on kernels that count maps under it. Where that is not permitted, creating a
/// map will say so.
pub fn lift_locked_memory() {
    let counted = uname()
        .ok()
        .and_then(|names| before_5_11(names.release().to_str()?))
        .unwrap_or(false);
    if !counted {
        return;
    }
    let resource = Resource::RLIMIT_MEMLOCK;
    let lifted = setrlimit(resource, RLIM_INFINITY, RLIM_INFINITY).or_else(|error| {
        // Not more than the hard limit without CAP_SYS_RESOURCE.
        let (_, hard) = getrlimit(resource)?;
        setrlimit(resource, hard, hard)?;
        Err(error)
    });
    if let Err(error) = lifted {
        tracing::warn!(%error, "the limit on locked memory cannot be lifted; give CAP_SYS_RESOURCE or smaller maps");
    }
}

/// Whether a release like `5.10.0-30-amd64` is older than 5.11.
fn before_5_11(release: &str) -> Option<bool> {
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor) < (5, 11))
}

#[cfg(test)]
mod tests {
    use super::before_5_11;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(before_5_11("5.10.0-30-amd64"), Some(true));
        assert_eq!(before_5_11("5.11.0"), Some(false));
        assert_eq!(before_5_11("6.1.0-18-cloud-amd64"), Some(false));
        assert_eq!(before_5_11("four"), None);
    }
}
