//! That the command line is sound, and all of it is told.

use super::*;

fn each(command: &clap::Command, check: &mut impl FnMut(&clap::Command)) {
    check(command);
    command.get_subcommands().for_each(|command| each(command, check));
}

fn built() -> clap::Command {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    command
}

#[test]
fn the_definition_has_no_contradictions() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_and_every_argument_has_help() {
    each(&built(), &mut |command| {
        assert!(command.get_about().is_some(), "{} has no help", command.get_name());
        for argument in command.get_arguments() {
            assert!(
                argument.get_help().is_some(),
                "{} {} has no help",
                command.get_name(),
                argument.get_id()
            );
        }
    });
}

#[test]
fn exit_codes_stand_in_help_and_in_the_manual_page() {
    let page = String::from_utf8(page(&built()).unwrap()).unwrap();
    let help = Cli::command().render_long_help().to_string();
    for (code, meaning) in EXIT_CODES {
        assert!(help.contains(&format!("{code:>3}  {}", &meaning[..4])), "{code} {meaning}");
        assert!(page.contains(&format!("\\fB{code}\\fR\n{}", &meaning[..4])), "{code} {meaning}: {page}");
    }
    for (variable, _) in ENVIRONMENT {
        assert!(help.contains(variable) && page.contains(variable), "{variable}");
    }
    assert!(page.contains(".SH \"EXIT STATUS\""), "{page}");
}

#[test]
fn each_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    man(Some(dir.path())).unwrap();
    let mut commands = 0;
    each(&built(), &mut |command| {
        commands += 1;
        let name = command.get_display_name().unwrap_or_else(|| command.get_name());
        let page = fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
    });
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), commands);
    assert!(dir.path().join("yun-image-import.1").exists());
}
