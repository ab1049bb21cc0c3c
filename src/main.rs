//! The `winnowd` program.

fn main() -> std::process::ExitCode {
    winnowd::cli::main()
}
