//! Writes the reference of the management API into a folder, and removes what is in it no longer: `api_docs FOLDER`.

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).ok_or("which folder? api_docs FOLDER")?);
    std::fs::create_dir_all(&folder)?;
    let files = hanse_gateway::api_reference();
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
        if name.is_some_and(|name| name.ends_with(".md") && !files.contains_key(&name)) {
            std::fs::remove_file(path)?;
        }
    }
    for (name, text) in &files {
        std::fs::write(folder.join(name), text)?;
    }
    println!("{} files in {}", files.len(), folder.display());
    Ok(())
}
