//! Exit codes and nothing else.
fn main() -> std::process::ExitCode {
    evergate::cli::main()
}
