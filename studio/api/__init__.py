"""`/v1`: what programs and pages ask and do. Rules are the asset store's; here they are only asked."""
