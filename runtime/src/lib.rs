//! What every process of Hanse needs: clock, tasks, shutdown, configuration, telemetry, certificates, sealing.
