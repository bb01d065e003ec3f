//! `hanse`: the roles (server, agent, front door), the installation of one machine, and the verbs of its users.
//!
//! - [`args`], [`access_args`], [`audit_args`], [`backup_args`], [`server_args`]: the command line. [`error`]: failures and exit codes.
//!   [`output`]: tables, documents, progress.
//! - [`client`]: HTTPS and the management API. [`logins`]: where the user is logged in. [`kubeconfig`]: contexts.
//! - [`local`]: `up`, `down`, `kill`, `start`. [`front_door`]: the pass-through before the gateways of one machine.
//! - [`verbs`]: the rest of what users do. [`role`]: the processes that this program can be; [`store`]: one of them, in
//!   etcd's clothes.

mod access_args;
mod app;
mod args;
mod audit_args;
mod backup_args;
mod client;
mod error;
mod files;
mod front_door;
mod kubeconfig;
mod local;
mod logins;
mod output;
mod role;
mod server_args;
mod store;
mod verbs;

use app::App;
use args::{Cli, Command, ConnectArgs, CreateArgs, DeleteArgs, LoginArgs, ProcessArgs, UpArgs, WayArgs};
use clap::{CommandFactory as _, Parser as _};
use error::{Error, Result};
use kubeconfig::Names;
use local::{down, region, up};
use server_args::ServerArgs;
use std::process::ExitCode;
use verbs::sso::Way;
use verbs::{audit, auth, backup, connect, create, key, list, login, people, restore, status, version};

// A fifth of a busy store's time went into the C library's allocator. RocksDB's allocations come here as well.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = output::Output::detect();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output.fault(&error);
            error.exit_code()
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let app = App::new(cli.home, cli.server);
    match cli.command {
        Command::FrontDoor(process) => role::front_door(&process),
        Command::Config { command } => role::config(&command, &app.output),
        Command::Completion { shell } => completion(&app, shell),
        Command::Agent(process) => role::agent(&process),
        Command::Server(args) => server(&app, args),
        Command::Store { flags } => store::run(&flags, &app.output),
        command => runtime()?.block_on(verb(&app, command)),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| Error::failed(format!("cannot start: {e}")))
}

/// A verb about servers, or the process of one.
fn server(app: &App, args: ServerArgs) -> Result<()> {
    let config = match &args.command {
        Some(command) => runtime()?.block_on(verbs::server::server(app, command))?,
        None => args.config,
    };
    let pid_file = args.pid_file;
    config.map_or(Ok(()), |config| role::server(&ProcessArgs { config, pid_file }))
}

fn completion(app: &App, shell: clap_complete::Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hanse", &mut script);
    app.output.print(&String::from_utf8_lossy(&script))
}

async fn verb(app: &App, command: Command) -> Result<()> {
    match command {
        Command::Up(args) => up(app, args).await,
        Command::Down { delete, kubeconfig } => down::down(app, delete, kubeconfig.kubeconfig.as_deref()).await,
        Command::Kill { region } => region::kill(app, &region).await,
        Command::Start { region } => region::start(app, &region).await,
        Command::Login(args) => login(app, args).await,
        Command::Logout { kubeconfig } => login::logout(app, kubeconfig.kubeconfig.as_deref()).await,
        Command::Create(args) => create(app, args).await,
        Command::Delete(args) => delete(app, args).await,
        Command::Connect(args) => connect(app, args).await,
        Command::Disconnect { kubeconfig } => connect::disconnect(app, kubeconfig.kubeconfig.as_deref()).await,
        Command::List { project, output } => list::list(app, project.as_deref(), output.output).await,
        Command::Get { name, project, output } => list::get(app, &name, &project.project, output.output).await,
        Command::Auth { command } => auth::auth(app, &command).await,
        Command::Key { command } => key::key(app, &command).await,
        Command::User { command } => people::user(app, command).await,
        Command::Team { command } => people::team(app, command).await,
        Command::Members { command } => people::members(app, command).await,
        Command::Audit { command } => audit::audit(app, &command).await,
        Command::Backup(args) => backup::backup(app, &args).await,
        Command::Restore(args) => restore::restore(app, &args).await,
        Command::Status { output } => status::status(app, output.output).await,
        Command::Version { output } => version::version(app, output.output).await,
        Command::Completion { .. }
        | Command::Config { .. }
        | Command::Server(_)
        | Command::Store { .. }
        | Command::Agent(_)
        | Command::FrontDoor(_) => Err(Error::failed("this command is no verb")),
    }
}

async fn up(app: &App, args: UpArgs) -> Result<()> {
    let options = up::Options {
        regions: args.regions,
        address_block: args.address_block,
        tenant: !args.no_tenant,
    };
    up::up(app, &options).await
}

async fn login(app: &App, args: LoginArgs) -> Result<()> {
    let options = login::Options {
        access_key_file: args.access_key_file.as_deref(),
        ca_file: args.ca_file.as_deref(),
        insecure: args.insecure,
        way: way(args.way),
    };
    login::login(app, &args.url, options).await
}

const fn way(args: WayArgs) -> Option<Way> {
    match args {
        WayArgs { browser: true, .. } => Some(Way::Browser),
        WayArgs { headless: true, .. } => Some(Way::Headless),
        WayArgs { device: true, .. } => Some(Way::Device),
        WayArgs { .. } => None,
    }
}

async fn create(app: &App, args: CreateArgs) -> Result<()> {
    let wanted = create::Wanted {
        name: args.name,
        project: args.project.project,
        region: args.region,
        cluster: args.cluster,
        simulated_nodes: args.simulated_nodes,
        gpus: args.gpus,
        limits: args.limits,
    };
    create::create(app, &wanted, !args.no_wait, args.timeout.timeout).await
}

async fn delete(app: &App, args: DeleteArgs) -> Result<()> {
    let limit = args.wait.then_some(args.timeout.timeout);
    let kubeconfig = args.kubeconfig.kubeconfig.as_deref();
    create::delete(app, &args.name, &args.project.project, limit, kubeconfig).await
}

async fn connect(app: &App, args: ConnectArgs) -> Result<()> {
    let names = match args.name {
        Some(name) => Names::Tenant {
            project: args.project.project,
            name,
        },
        None => Names::Management,
    };
    let options = connect::Options {
        kubeconfig: args.kubeconfig.kubeconfig.as_deref(),
        switch: !args.no_switch,
        print: args.print,
        limit: args.timeout.timeout,
    };
    connect::connect(app, &names, options).await
}
