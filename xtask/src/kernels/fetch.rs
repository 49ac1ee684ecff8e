//! The kernels in the cache folder: what is there, and how what is not there gets there.

use super::index::{Candidate, by_preference, candidates, compare_versions};
use super::{Series, Wanted};
use crate::provision::apt::PrivateApt;
use crate::provision::{CacheLock, cache_dir, place_atomically, say};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A kernel that lies unpacked in the cache.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it was unpacked from.
    pub source: Candidate,
    /// What `uname -r` says.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// Folder with its modules (`…/lib/modules/RELEASE`), where Debian still has them.
    pub modules: Option<PathBuf>,
}

/// One line of `--list`.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The kernel that a boot of its series would take.
    pub candidate: Candidate,
    /// The version of its series that lies in the cache; a boot takes it unless told to refresh.
    pub cached: Option<String>,
}

/// The kernels of the cache and of the suites.
#[derive(Debug)]
pub struct Kernels {
    root: PathBuf,
}

impl Kernels {
    /// Opens the cache folder's part.
    pub fn open() -> Result<Self> {
        let root = cache_dir()?.join("kernels");
        fs::create_dir_all(&root).with_context(|| format!("cannot create {}", root.display()))?;
        Ok(Self { root })
    }

    /// What can be booted, by series. Asks the suites only if they were never asked, or with `refresh`.
    pub fn list(&self, refresh: bool) -> Result<Vec<Offer>> {
        let _lock = CacheLock::acquire("kernels")?;
        let mut offers: BTreeMap<Series, Offer> = BTreeMap::new();
        for group in self.index(refresh)?.into_values() {
            if let Some(candidate) = group.into_iter().next() {
                offers.insert(
                    candidate.series,
                    Offer {
                        candidate,
                        cached: None,
                    },
                );
            }
        }
        // The newest version of a series comes last and stays.
        for kernel in self.cached()?.into_iter().rev() {
            let version = Some(kernel.source.version.clone());
            let offer = offers.entry(kernel.source.series);
            offer
                .or_insert(Offer {
                    candidate: kernel.source,
                    cached: None,
                })
                .cached = version;
        }
        Ok(offers.into_values().collect())
    }

    /// The wanted kernel, from the cache if it has one of that series, else downloaded. `refresh` asks the suites again and
    /// takes the newest point release.
    pub fn provide(&self, wanted: Wanted, refresh: bool) -> Result<Kernel> {
        let _lock = CacheLock::acquire("kernels")?;
        let cached = self.cached()?;
        if let (Wanted::Series(series), false) = (wanted, refresh)
            && let Some(kernel) = cached.iter().find(|kernel| kernel.source.series == series)
        {
            return Ok(kernel.clone());
        }
        let mut fresh = refresh || !self.index_file().is_file();
        let mut index = self.index(refresh)?;
        let series = match wanted {
            Wanted::Series(series) => series,
            Wanted::Newest => *index.keys().next_back().context("the indexes name no kernel")?,
        };
        if wanted == Wanted::Newest
            && !refresh
            && let Some(kernel) = cached.iter().find(|kernel| kernel.source.series == series)
        {
            return Ok(kernel.clone());
        }
        loop {
            match self.download(series, index.get(&series).map_or(&[], Vec::as_slice)) {
                Ok(kernel) => return Ok(kernel),
                // Point releases vanish from the mirror: an index kept from an earlier day may name none that is left.
                Err(error) if !fresh => {
                    say(&format!("{error:#}; asking the suites again"));
                    index = self.index(true)?;
                    fresh = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the first candidate that can still be downloaded.
    fn download(&self, series: Series, group: &[Candidate]) -> Result<Kernel> {
        let mut reasons = Vec::new();
        for candidate in group {
            if let Some(kernel) = self.cached_exactly(candidate) {
                return Ok(kernel);
            }
            match self.unpack(candidate) {
                Ok(kernel) => return Ok(kernel),
                Err(error) => {
                    say(&format!(
                        "{} {} cannot be had: {error:#}",
                        candidate.image, candidate.version
                    ));
                    reasons.push(format!("{error:#}"));
                }
            }
        }
        match reasons.first() {
            None => bail!(
                "no suite offers a kernel of the series {series} any more; see cargo xtask guest --list"
            ),
            Some(reason) => bail!("no kernel of the series {series} can be downloaded: {reason}"),
        }
    }

    fn unpack(&self, candidate: &Candidate) -> Result<Kernel> {
        let apt = PrivateApt::open()?;
        say(&format!(
            "downloading kernel {} ({} {} from {})",
            candidate.series, candidate.image, candidate.version, candidate.suite
        ));
        place_atomically(&self.folder(candidate), |content| {
            apt.unpack(&candidate.image, &candidate.version, content)?;
            if let Some(modules) = candidate
                .modules
                .as_deref()
                .filter(|modules| *modules != candidate.image)
                && let Err(error) = apt.unpack(modules, &candidate.version, content)
            {
                say(&format!("booting without modules: {error:#}"));
            }
            let text = serde_json::to_string_pretty(candidate)?;
            fs::write(content.join("kernel.json"), text).context("cannot write kernel.json")?;
            // Only what can be booted is kept.
            find_image(content)
                .map(drop)
                .with_context(|| format!("{} holds no kernel image", candidate.image))
        })?;
        self.cached_exactly(candidate).with_context(|| {
            format!(
                "{} {} holds no boot/vmlinuz-*",
                candidate.image, candidate.version
            )
        })
    }

    fn folder(&self, candidate: &Candidate) -> PathBuf {
        self.root
            .join(candidate.series.to_string())
            .join(&candidate.version)
    }

    fn cached_exactly(&self, candidate: &Candidate) -> Option<Kernel> {
        read_cached(&self.folder(candidate))
    }

    /// All kernels of the cache, the newest version of a series first.
    fn cached(&self) -> Result<Vec<Kernel>> {
        let mut kernels = Vec::new();
        for series in subfolders(&self.root)? {
            for version in subfolders(&series)? {
                kernels.extend(read_cached(&version));
            }
        }
        kernels.sort_by(|left, right| compare_versions(&right.source.version, &left.source.version));
        Ok(kernels)
    }

    fn index_file(&self) -> PathBuf {
        self.root.join("index.json")
    }

    /// The candidates of all series: as found last time, or asked anew.
    fn index(&self, refresh: bool) -> Result<BTreeMap<Series, Vec<Candidate>>> {
        if !refresh
            && let Ok(text) = fs::read_to_string(self.index_file())
            && let Ok(all) = serde_json::from_str(&text)
        {
            return Ok(by_preference(all));
        }
        let apt = PrivateApt::open()?;
        apt.update()?;
        let all: Vec<Candidate> = apt
            .indexes()?
            .iter()
            .flat_map(|index| candidates(&index.suite, &index.packages))
            .collect();
        if all.is_empty() {
            bail!("the fetched package lists name no cloud kernel");
        }
        let text = serde_json::to_string_pretty(&all)?;
        fs::write(self.index_file(), text)
            .with_context(|| format!("cannot write {}", self.index_file().display()))?;
        Ok(by_preference(all))
    }
}

/// A kernel unpacked in `folder`, if it is one.
fn read_cached(folder: &Path) -> Option<Kernel> {
    let source: Candidate =
        serde_json::from_str(&fs::read_to_string(folder.join("kernel.json")).ok()?).ok()?;
    let (image, release) = find_image(folder)?;
    let modules = MODULE_PLACES
        .map(|place| folder.join(place).join(&release))
        .into_iter()
        .find(|place| place.join("kernel").is_dir());
    Some(Kernel {
        source,
        release,
        image,
        modules,
    })
}

const MODULE_PLACES: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// The bootable image and its release: `boot/vmlinuz-RELEASE`, from 7.2 on `usr/lib/modules/RELEASE/vmlinuz`.
fn find_image(folder: &Path) -> Option<(PathBuf, String)> {
    let entries = |place: &str| {
        fs::read_dir(folder.join(place))
            .into_iter()
            .flatten()
            .filter_map(Result::ok)
    };
    let in_boot = entries("boot").find_map(|entry| {
        let release = entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned();
        Some((entry.path(), release))
    });
    in_boot.or_else(|| {
        MODULE_PLACES
            .iter()
            .flat_map(|place| entries(place))
            .find_map(|entry| {
                let image = entry.path().join("vmlinuz");
                image
                    .is_file()
                    .then(|| Some((image, entry.file_name().to_str()?.to_owned())))?
            })
    })
}

fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let folders = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| path.is_dir());
    // Half-made folders of a task that was killed begin with a dot.
    Ok(folders
        .filter(|path| {
            !path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'))
        })
        .collect())
}
