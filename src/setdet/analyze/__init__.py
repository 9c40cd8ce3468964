"""Why a detector does what it does: looking into its results and its parts."""
