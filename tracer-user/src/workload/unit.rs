//! systemd units.

/// Suffixes of units that have processes (systemd.unit(5)); slices only hold other units.
const SUFFIXES: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// The unit: below slices the first name that is a unit's. Below `user@UID.service` runs a systemd of the user's, whose
/// own unit says more.
pub(super) fn of(components: &[&str]) -> Option<String> {
    let mut rest = components.iter();
    let unit = next(&mut rest)?;
    let own = if unit.starts_with("user@") {
        next(&mut rest)
    } else {
        None
    };
    Some(own.unwrap_or(unit))
}

fn next<'c>(components: &mut impl Iterator<Item = &'c &'c str>) -> Option<String> {
    let name = components.find(|name| name.strip_suffix(".slice").is_none())?;
    // A name that would clash with a file of the cgroup file system gets a `_` before it (cg_escape).
    let name = name.strip_prefix('_').unwrap_or(name);
    SUFFIXES
        .iter()
        .any(|suffix| name.strip_suffix(suffix).is_some_and(|stem| !stem.is_empty()))
        .then(|| name.to_owned())
}
