//! The return proxy with real peers: OpenSSH, dropbear and paramiko, nginx, curl and `RabbitMQ`, in
//! network namespaces. Each case has a world to itself.

#[path = "tunnel/amqp.rs"]
mod amqp;
#[path = "tunnel/carries.rs"]
mod carries;
#[path = "tunnel/heals.rs"]
mod heals;
#[path = "tunnel/pairings.rs"]
mod pairings;
#[path = "tunnel/refuses.rs"]
mod refuses;
#[path = "tunnel/regress.rs"]
mod regress;
