//! Makes a test fixture of a kernel: its BTF cut down to what the layout needs, the symbols of the functions that
//! sdtrace wants, and the layout that follows from both.
//!
//! `cut-btf VMLINUX_BTF KALLSYMS OUT_FOLDER`

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use sdtrace::kernel::btf;
use sdtrace::kernel::kallsyms::Symbols;
use sdtrace::kernel::layout::Layout;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [whole, kallsyms, folder] = &arguments[..] else {
        return Err("usage: cut-btf VMLINUX_BTF KALLSYMS OUT_FOLDER".into());
    };
    let whole = fs::read(whole)?;
    let kallsyms = fs::read_to_string(kallsyms)?;
    let wanted: Vec<_> = Layout::wanted_functions().collect();
    let is_wanted = |line: &&str| {
        let name = line.split_ascii_whitespace().nth(2).unwrap_or_default();
        wanted.contains(&name.split('.').next().unwrap_or_default())
    };
    let symbols: String = kallsyms
        .lines()
        .filter(is_wanted)
        .flat_map(|line| [line, "\n"])
        .collect();
    let cut = btf::cut(&whole)?;
    let resolve = |btf| -> Result<Layout, Box<dyn Error>> {
        Ok(Layout::resolve(
            btf,
            Some(&Symbols::parse(symbols.as_bytes(), wanted.iter().copied())?),
        )?)
    };
    let layout = resolve(&cut)?;
    if layout != resolve(&whole)? {
        return Err("cutting changed the layout".into());
    }
    let folder = Path::new(folder);
    fs::create_dir_all(folder)?;
    fs::write(folder.join("vmlinux.btf"), cut)?;
    fs::write(folder.join("kallsyms"), symbols)?;
    fs::write(folder.join("layout.txt"), layout.to_string())?;
    Ok(())
}
