//! What every engine must do; run against each of them.
