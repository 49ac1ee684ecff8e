//! Makes a test fixture of a kernel from a folder with its whole `vmlinux.btf`, `kallsyms` and `release`: its BTF cut
//! down to what the layout needs, the symbols of the functions that sdtrace wants, and the layout that follows.
//!
//! `cut-btf KERNEL_FOLDER FIXTURE_FOLDER`; `cargo xtask fixtures` calls it.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use sdtrace::kernel::btf;
use sdtrace::kernel::kallsyms::Symbols;
use sdtrace::kernel::layout::Layout;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kernel, fixture] = &arguments[..] else {
        return Err("usage: cut-btf KERNEL_FOLDER FIXTURE_FOLDER".into());
    };
    let (kernel, fixture) = (Path::new(kernel), Path::new(fixture));
    let whole = fs::read(kernel.join("vmlinux.btf"))?;
    let kallsyms = fs::read_to_string(kernel.join("kallsyms"))?;
    let wanted: Vec<_> = Layout::wanted_functions().collect();
    let variables: Vec<_> = Layout::wanted_variables().collect();
    let is_wanted = |line: &&str| {
        let mut fields = line.split_ascii_whitespace().skip(2);
        let stem = fields
            .next()
            .unwrap_or_default()
            .split('.')
            .next()
            .unwrap_or_default();
        (wanted.contains(&stem) || variables.contains(&stem)) && fields.next().is_none()
    };
    let symbols: String = kallsyms
        .lines()
        .filter(is_wanted)
        .flat_map(|line| [line, "\n"])
        .collect();
    let cut = btf::cut(&whole)?;
    let resolve = |btf, symbols: &str| -> Result<Layout, Box<dyn Error>> {
        Ok(Layout::resolve(
            btf,
            Some(&Symbols::parse(
                symbols.as_bytes(),
                wanted.iter().copied(),
                variables.iter().copied(),
            )?),
        )?)
    };
    let layout = resolve(&cut, &symbols)?;
    if layout != resolve(&whole, &kallsyms)? {
        return Err("cutting changed the layout".into());
    }
    fs::create_dir_all(fixture)?;
    fs::write(fixture.join("vmlinux.btf"), cut)?;
    fs::write(fixture.join("kallsyms"), symbols)?;
    fs::write(fixture.join("layout.txt"), layout.to_string())?;
    fs::copy(kernel.join("release"), fixture.join("release"))?;
    Ok(())
}
