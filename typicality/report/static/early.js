try { const theme = localStorage.getItem("typicality-theme"); if (theme) document.documentElement.dataset.theme = theme; } catch { /* storage is off */ }
